"""What users write: recipes and cluster profiles, typed and checked."""
