"""Ids on the disk, and the training samples that are made of them."""
