"""What a schema says of its settings, for people: types in words, defaults, units, descriptions.

The descriptions are those of the docstrings: the entries below ``Attributes:`` in Google's style,
of which one may be for several names, ``a, b: text``.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from msgspec import NODEFAULT

from cosmos_hpc.utils.annotations import in_words
from cosmos_hpc.utils.settings import Section, section_of, types_of
from cosmos_hpc.utils.settings import defaults as defaults_of

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
    usual = defaults_of(schema)
    for name, annotation in types_of(schema).items():
        inner = section_of(annotation)
        default = getattr(defaults, name) if defaults else usual.get(name, NODEFAULT)
        if inner:
            given = default if isinstance(default, Section) else None
            found += describe(inner, f"{prefix}{name}.", given)
        else:
            found.append(_described(schema, name, default, prefix))
    return found


def _described(schema: type[Section], name: str, default: Any, prefix: str) -> Described:
    names, text = _attributes(schema).get(name, ((name,), ""))
    kind = in_words(types_of(schema)[name])
    words = schema.default_words.get(name)
    required = default is NODEFAULT and not words
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
    for name, annotation in types_of(schema).items():
        inner = section_of(annotation)
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
