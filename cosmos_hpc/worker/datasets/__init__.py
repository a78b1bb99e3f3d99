"""Tokens on the disk, and the training samples that are made from them."""
