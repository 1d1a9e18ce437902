"""Hostile input, by the million: coverage-guided runs over everything that reads bytes of somebody else."""
