"""Post-train NVIDIA's Cosmos-1.0 autoregressive world models with one command.

>>> import cosmos_hpc as ch
>>> run = ch.submit("ar_tiny", overrides=["data.input=videos"])   # doctest: +SKIP
>>> run.status(); run.losses()                                    # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cosmos_hpc.api import (
        Run,
        check_cluster,
        download,
        generate,
        init_cluster,
        plan,
        recipe,
        submit,
    )
    from cosmos_hpc.errors import CosmosError, RequestError, WorkError

__version__ = "0.1.0"
__all__ = [
    "CosmosError",
    "RequestError",
    "Run",
    "WorkError",
    "check_cluster",
    "download",
    "generate",
    "init_cluster",
    "plan",
    "recipe",
    "submit",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: workers and `cosmos-hpc --help` do without.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = "errors" if name.endswith("Error") else "api"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
