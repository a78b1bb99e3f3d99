"""Where stages run: this machine, Docker on it, a Slurm cluster."""
