"""Verification that results are reproducible, and tracing of every number to what made it."""
