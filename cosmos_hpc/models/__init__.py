"""``ModelConfig``, which needs no torch; ``from_published`` and ``generate``, which do."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cosmos_hpc.models.config import ModelConfig

if TYPE_CHECKING:
    from cosmos_hpc.models.checkpoints.published import from_published
    from cosmos_hpc.models.generation import generate

__all__ = ["ModelConfig", "from_published", "generate"]

_WITH_TORCH = {
    "from_published": "cosmos_hpc.models.checkpoints.published",
    "generate": "cosmos_hpc.models.generation",
}


def __getattr__(name: str) -> Any:
    # On first use: recipes read ModelConfig on login nodes without torch.
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WITH_TORCH[name]), name)
