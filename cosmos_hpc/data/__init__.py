"""Which videos a run prepares and where their list is cut: no torch."""
