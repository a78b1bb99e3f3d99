"""Samples: what they continue, how they are generated, and how they are written."""
