"""Videos to ids, and prompts to embeddings."""
