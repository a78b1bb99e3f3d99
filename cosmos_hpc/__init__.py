"""Post-train NVIDIA's Cosmos-1.0 autoregressive world models with one command.

>>> import cosmos_hpc as ch
>>> run = ch.submit("ar_tiny", overrides=["data.input=videos"])   # doctest: +SKIP
>>> run.status(); run.losses()                                    # doctest: +SKIP

What there is:

- ``submit`` runs a recipe, or resumes its run; ``plan`` says what that would do, ``recipe``
  what it is made of, ``download`` fetches what it needs of the Hub;
- ``Run`` is a run, to look at and to resume; ``Sweep`` several that differ in settings with
  several values; ``runs`` lists those of a folder, ``compare``
  puts their losses and scores beside each other;
- ``generate`` continues pictures and videos with the weights of a run or a model;
- ``init_cluster`` writes a profile of a Slurm cluster, ``check_cluster`` checks one;
- ``sample_videos`` makes videos to try all this with;
- ``CosmosError`` is what they raise: ``RequestError``, the request was wrong and nothing was
  started, or ``WorkError``, the work failed.

``help(cosmos_hpc.submit)`` says more of each.
"""

from __future__ import annotations

# As in typing, whose import takes longer than all else of `cosmos-hpc --help`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cosmos_hpc.api import (
        Run,
        Sweep,
        check_cluster,
        compare,
        download,
        generate,
        init_cluster,
        plan,
        recipe,
        runs,
        sample_videos,
        submit,
    )
    from cosmos_hpc.errors import CosmosError, RequestError, WorkError

__version__ = "0.1.0"
__all__ = [
    "CosmosError",
    "RequestError",
    "Run",
    "Sweep",
    "WorkError",
    "check_cluster",
    "compare",
    "download",
    "generate",
    "init_cluster",
    "plan",
    "recipe",
    "runs",
    "sample_videos",
    "submit",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: workers and `cosmos-hpc --help` do without.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name == "runs":
        # The package of that name, which can be called: importing it sets this attribute.
        return importlib.import_module(f"{__name__}.runs")
    module = "errors" if name.endswith("Error") else "api"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    # What is meant for people, so that a completion shows no more than that.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
