"""The training: NeMo on Megatron-Core, and what has to be adapted in them."""
