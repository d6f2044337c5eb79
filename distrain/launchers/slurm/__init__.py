"""Runs as jobs and job steps of SLURM."""
