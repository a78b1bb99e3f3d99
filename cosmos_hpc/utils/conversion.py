"""Plain data as a struct, from several threads."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

# Reentrant: what a struct checks when it is made may convert parts of it.
_CONVERTING = threading.RLock()


def convert(data: Any, kind: type[T]) -> T:
    """As ``msgspec.convert``, which crashes where two threads are the first to use a type.

    Raises:
        msgspec.ValidationError: the data are of another form.
    """
    with _CONVERTING:
        return msgspec.convert(data, kind)  # noqa: TID251
