"""One training run as one Slurm job: what it asks for, and how its ranks start inside it."""
