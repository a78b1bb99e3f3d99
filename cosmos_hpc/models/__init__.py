"""Model definitions: ``ModelConfig``, which needs no torch, and ``from_published``, which does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cosmos_hpc.models.config import ModelConfig

if TYPE_CHECKING:
    from cosmos_hpc.models.checkpoints.published import from_published

__all__ = ["ModelConfig", "from_published"]


def __getattr__(name: str) -> Any:
    # On first use: recipes read ModelConfig on login nodes without torch.
    if name != "from_published":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cosmos_hpc.models.checkpoints.published import from_published

    return from_published
