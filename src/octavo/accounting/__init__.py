"""Attempts -> device-hours, energy, cost."""
