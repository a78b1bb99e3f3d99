"""What a schema says of its settings, for people: types in words, defaults, units, descriptions.

The descriptions are those of the docstrings: the entries below ``Attributes:`` in Google's style,
of which one may be for several names, ``a, b: text``.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cosmos_hpc.utils.settings import InWords, Section, section_of

_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n(?:     .*|$))*)", re.MULTILINE)
#: "One of" a table of the code: the type lists what there is.
_TABLE = re.compile(r", one of :data:`[^`]*`")
_ROLE = re.compile(r":\w+(?::\w+)*:`~?(?:[\w.]*\.)?(\w+)`")

#: Units of numbers, by how the description of a single setting begins, and then by the name.
_UNITS_OF_TEXTS = {
    "frames a second": "frames a second",
    "frames": "frames",
    "seconds": "seconds",
    "steps": "steps",
    "optimizer steps": "steps",
    "clips": "clips",
    "samples": "samples",
    "videos": "videos",
    "share": "fraction",
}
_UNITS_OF_NAMES = {
    r"(.*_)?seconds": "seconds",
    r"(.*_)?frames": "frames",
    r"height|width": "pixels",
    r".*_steps|(save|validate)_every": "steps",
    r".*_batch_size": "clips",
}


@dataclass(frozen=True)
class Described:
    """A setting in words.

    Attributes:
        name: dotted.
        type: what its values are, in words.
        required: whether it has no default.
        default: as plain data; None as well where it is required, or depends on the machine.
        default_words: the default in words, where it does.
        unit: of a number; None where neither its name nor its description says one.
        text: what it is; empty where nothing is said. A shared description begins with its names.
    """

    name: str
    type: str
    required: bool
    default: Any
    default_words: str | None
    unit: str | None
    text: str


def describe(
    schema: type[Section], prefix: str = "", defaults: Section | None = None
) -> list[Described]:
    """Every setting of a schema, in the order of the definition.

    Args:
        schema: a section, with sections in it.
        prefix: of the names, with its dot.
        defaults: what the section is where nothing is said of it; None: as its own fields say.
    """
    found = []
    for name, field in schema.model_fields.items():
        inner = section_of(field.annotation)
        default = PydanticUndefined if defaults is None else getattr(defaults, name)
        if default is PydanticUndefined:
            default = field.get_default(call_default_factory=True)
        if inner:
            given = default if isinstance(default, Section) else None
            found += describe(inner, f"{prefix}{name}.", given)
        else:
            found.append(_described(schema, name, default, prefix))
    return found


def _described(schema: type[Section], name: str, default: Any, prefix: str) -> Described:
    field = schema.model_fields[name]
    names, text = _attributes(schema).get(name, ((name,), plain(field.description or "")))
    kind = in_words(field.annotation, field.metadata)
    words = schema.default_words.get(name)
    required = default is PydanticUndefined and not words
    if words or required:
        default = None
    return Described(
        name=f"{prefix}{name}",
        type=kind,
        required=required,
        default=list(default) if isinstance(default, tuple) else default,
        default_words=words,
        unit=_unit(name, text, shared=len(names) > 1) if "number" in kind else None,
        text=text if len(names) == 1 else f"{', '.join(f'`{n}`' for n in names)}: {text}",
    )


def describe_sections(schema: type[Section], prefix: str = "") -> dict[str, str]:
    """What each section in a schema is, by dotted name: the entry of the schema around it."""
    found = {}
    for name, field in schema.model_fields.items():
        inner = section_of(field.annotation)
        if inner:
            found[prefix + name] = _attributes(schema).get(name, ((), ""))[1]
            found |= describe_sections(inner, f"{prefix}{name}.")
    return found


def _attributes(schema: type[Section]) -> dict[str, tuple[tuple[str, ...], str]]:
    """Names that share an entry, and its text, by each of them; a subclass has the last word."""
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for cls in reversed(schema.__mro__):
        if cls is Section or not issubclass(cls, Section):
            continue
        _, _, listed = inspect.cleandoc(vars(cls).get("__doc__") or "").partition("Attributes:\n")
        listed = re.split(r"^\S", listed, maxsplit=1, flags=re.MULTILINE)[0]
        for names, text in _ENTRY.findall(listed):
            entry = (tuple(names.split(", ")), plain(" ".join(text.split())))
            found |= dict.fromkeys(entry[0], entry)
    return found


def plain(text: str) -> str:
    """Text of a docstring with Markdown's code marks, and YAML's word for None."""
    text = _ROLE.sub(r"`\1`", _TABLE.sub("", text)).replace("``", "`")
    return re.sub(r"(?<!returns )(?<!or )\bNone\b", "`null`", text)


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, without it."""
    return re.split(r"\.(?:\s+(?=[A-Z0-9`])|$)", text, maxsplit=1)[0]


def _unit(name: str, text: str, shared: bool) -> str | None:
    begins = (u for b, u in _UNITS_OF_TEXTS.items() if re.match(rf"{b}\b", text) and not shared)
    named = (u for pattern, u in _UNITS_OF_NAMES.items() if re.fullmatch(pattern, name))
    return next(begins, None) or next(named, None)


def in_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What the values of a type are, in words.

    Args:
        annotation: as pydantic keeps it.
        metadata: of an ``Annotated`` around it: pydantic's limits, or :class:`InWords`, which says
            it all.
    """
    limits: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, InWords):
            return plain(item.text)
        for part in item.metadata if isinstance(item, FieldInfo) else (item,):
            limits |= {n: getattr(part, n) for n in ("gt", "ge", "lt", "le") if hasattr(part, n)}
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return in_words(inner[0], inner[1:])
    if origin in (typing.Union, types.UnionType):
        said = _or([in_words(kind) for kind in inner if kind is not types.NoneType])
        return f"{said}, or `null`" if types.NoneType in inner else said
    if origin is Literal:
        return _or([f"`{value}`" for value in inner])
    if origin is list:
        return f"list, each: {in_words(inner[0])}"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(annotation, str(annotation)) + _limits(limits)


def _or(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _limits(limits: dict[str, Any]) -> str:
    low = f" above {limits['gt']}" if "gt" in limits else ""
    if "ge" in limits:
        both = "lt" in limits or "le" in limits
        low = f" {'from' if both else 'of at least'} {limits['ge']}"
    high = f" to below {limits['lt']}" if "lt" in limits else ""
    return low + (f" to {limits['le']}" if "le" in limits else high)
