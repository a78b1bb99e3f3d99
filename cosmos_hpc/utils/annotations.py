"""Types of settings, and what their values are in words."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

#: Above all numbers but infinity.
_LARGEST = sys.float_info.max

PositiveInt = Annotated[int, Meta(gt=0)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0, le=_LARGEST)]
NonNegativeFloat = Annotated[float, Meta(ge=0, le=_LARGEST)]

_UNIONS = (types.UnionType, typing.Union)


class InWords(Struct, frozen=True):
    """Metadata of a type: what its values are."""

    text: str


class Checked(Struct, frozen=True):
    """Metadata of a type: a function that returns a value as it is kept, or raises a ValueError."""

    function: Callable[[Any], Any]


def is_checked(annotation: Any) -> bool:
    """Whether there is a :class:`Checked` in a type."""
    inner = typing.get_args(annotation)
    return any(isinstance(one, Checked) or is_checked(one) for one in inner)


def checked(annotation: Any, value: Any) -> Any:
    """A value as the functions in its type return it.

    Raises:
        ValueError: of these functions.
    """
    if not is_checked(annotation):
        return value
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return [checked(inner[0], one) for one in value]
    if origin in _UNIONS:
        (kind,) = (one for one in inner if is_checked(one))
        return None if value is None else checked(kind, value)
    value = checked(inner[0], value)
    for item in inner[1:]:
        value = item.function(value) if isinstance(item, Checked) else value
    return value


def in_words(annotation: Any) -> str:
    """What the values of a type are."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        said = [item.text for item in inner[1:] if isinstance(item, InWords)]
        return said[0] if said else in_words(inner[0]) + _limits(inner[1:])
    if origin in _UNIONS:
        words = _or([in_words(kind) for kind in inner if kind is not types.NoneType])
        return f"{words}, or `null`" if types.NoneType in inner else words
    if origin is Literal:
        return _or([f"`{value}`" for value in inner])
    if origin is list:
        return f"list, each: {in_words(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return "settings by their names"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(annotation, str(annotation))


def _or(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _limits(metadata: tuple[Any, ...]) -> str:
    limits = {
        name: limit
        for item in metadata
        for name in ("gt", "ge", "lt", "le")
        if (limit := getattr(item, name, None)) not in (None, _LARGEST)
    }
    low = f" above {limits['gt']}" if "gt" in limits else ""
    if "ge" in limits:
        both = "lt" in limits or "le" in limits
        low = f" {'from' if both else 'of at least'} {limits['ge']}"
    high = f" to below {limits['lt']}" if "lt" in limits else ""
    return low + (f" to {limits['le']}" if "le" in limits else high)
