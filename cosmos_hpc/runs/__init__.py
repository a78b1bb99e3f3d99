"""The run folder: how it is made and read, its stages, its logs."""
