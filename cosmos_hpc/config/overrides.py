"""Settings that a caller in Python changes: a list of ``key=value``, or a dict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.mappings import flatten

#: ``["train.max_steps=10"]``, ``{"train.max_steps": 10}`` or ``{"train": {"max_steps": 10}}``.
Overrides = Iterable[str] | Mapping[str, Any]


def as_list(overrides: Overrides) -> list[str]:
    """Overrides as ``key=value``, as the command line takes them.

    Raises:
        RequestError: it is one text, or something else that is neither a list of texts nor a dict.
    """
    if isinstance(overrides, Mapping):
        return [f"{key}={written(value)}" for key, value in flatten(overrides).items()]
    if isinstance(overrides, str):
        raise RequestError(
            f"overrides is a list of key=value or a dict, not one text; write [{overrides!r}]"
        )
    wrong = overrides if not isinstance(overrides, Iterable) else None
    found = [] if wrong is not None else [*overrides]
    wrong = next((one for one in found if not isinstance(one, str)), wrong)
    if wrong is not None:
        raise RequestError(f"overrides is a list of key=value or a dict, and holds {wrong!r}")
    return found


def written(value: Any) -> str:
    """A value as it is written in a request, and as YAML reads it; texts stay as they are."""
    if value is None or isinstance(value, bool | int | float | list | tuple | Mapping):
        return json.dumps(value, default=str)
    return str(value)
