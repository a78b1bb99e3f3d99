"""What a job does: a file a stage."""
