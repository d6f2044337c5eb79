"""Training in SLURM jobs and job steps."""
