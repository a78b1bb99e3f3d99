"""The page of a run: one file of HTML that needs nothing else."""
