"""Runs that others trained: their logs are read and become the tables that verdicts are made from.

`formats` reads one kind of file each, `points` puts what they read into the order of its steps, `times` says how many
steps a logged time stands for, `runs` writes the tables, and `table` shows what was read.
"""
