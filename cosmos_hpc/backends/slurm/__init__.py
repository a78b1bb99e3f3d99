"""Slurm: profiles, its commands, the scripts of jobs, submission."""
