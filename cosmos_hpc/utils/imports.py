"""Imports large libraries, and ends processes that use them, without needless work."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from typing import Any


def load(name: str) -> Any:
    """What ``module:name`` stands for; the module is imported now, by who does the work."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@contextlib.contextmanager
def large_imports(freeze: bool = False) -> Iterator[None]:
    """Leave out garbage collections in the block, which would find none in modules that are new.

    Args:
        freeze: leave out later looks at them as well, and at all else that there is by then; for
            processes of our own, where that is no garbage yet.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if enabled:
            gc.enable()


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Have imports in the block find no module of a name, unless it is imported already.

    For libraries that import a large one where there is one, and can do without.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # as the import system has it
    try:
        yield
    finally:
        del sys.modules[name]


def end_quickly() -> None:
    """Make this process end without a last garbage collection over large libraries.

    With NeMo imported that takes three seconds. To be called first: what others register for the
    end is done before.
    """
    atexit.register(gc.freeze)
