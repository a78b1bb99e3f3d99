"""Weights on the disk: published files and NeMo's folders, read and written."""
