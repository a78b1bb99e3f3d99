"""What runs inside a job. The login side imports nothing from here but on demand."""
