"""Scores on held-out clips: of predicted tokens, and of generated frames."""
