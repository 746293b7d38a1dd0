"""Runs -> tables -> statistics -> verdicts."""
