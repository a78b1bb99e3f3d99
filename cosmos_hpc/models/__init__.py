"""Model definitions. ``ModelConfig`` needs no torch; the modules beside it do."""

from cosmos_hpc.models.config import ModelConfig

__all__ = ["ModelConfig"]
