"""A user's function that sees prompts and frames, and may refuse them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_hpc.errors import WorkError


class RefusedError(Exception):
    """The guard has refused a prompt or frames; the message says why.

    Attributes:
        kind: for counting.
    """

    kind = "refused"


class Guard:
    """The function that ``generate.guard`` names.

    Args:
        name: ``module:function`` or ``FILE.py:function``.

    Raises:
        WorkError: there is no such function.
    """

    def __init__(self, name: str) -> None:
        self._function = _load(name)

    def check(self, prompt: str | None, pixels: np.ndarray) -> None:
        """Show a prompt and frames to the function.

        Args:
            prompt: None for models without text.
            pixels: uint8 ``[3, T, H, W]``; the function gets them as ``[T, H, W, 3]``.

        Raises:
            RefusedError: it has returned a text, which says why, or has failed: what a guard cannot
                judge is not let through.
        """
        try:
            answer = self._function(prompt, np.ascontiguousarray(pixels.transpose(1, 2, 3, 0)))
        except Exception as e:
            raise RefusedError(f"the guard failed: {type(e).__name__}: {e}") from e
        if answer is not None:
            raise RefusedError(f"refused by the guard: {answer}")


def _load(name: str) -> Callable[[str | None, np.ndarray], Any]:
    where, _, function = name.rpartition(":")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        found = getattr(module, function)
    except (ImportError, OSError, SyntaxError, AttributeError) as e:
        raise WorkError(f"generate.guard={name} cannot be loaded: {e}") from None
    if not callable(found):
        raise WorkError(f"generate.guard={name} is not a function")
    guard: Callable[[str | None, np.ndarray], Any] = found
    return guard
