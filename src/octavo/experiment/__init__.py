"""Configuration files -> validated experiments, cells and runs."""
