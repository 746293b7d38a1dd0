"""Runs that others made: their logs -> the tables that verdicts are made from."""
