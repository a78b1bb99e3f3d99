"""Samples: what they continue, how they are drawn, and how they are written."""
