"""Videos to tokens, and prompts to embeddings."""
