"""Typed configuration: mappings and ``key=value`` overrides, checked before anything runs."""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.mappings import merge, parse_yaml

S = TypeVar("S", bound="Section")


@dataclass(frozen=True)
class Synonym:
    """What a word that is no setting usually stands for elsewhere.

    Attributes:
        settings: what it is called here.
        but: how that differs from what the word says, as the end of a sentence.
    """

    settings: tuple[str, ...]
    but: str = ""


@dataclass(frozen=True)
class InWords:
    """Metadata of a type: what its values are, for the reference of settings."""

    text: str


class Section(BaseModel):
    """A group of settings: strict types, no unknown keys, no changes after loading.

    Attributes:
        synonyms: words from elsewhere, in lower case, that people try as names of its settings.
        default_words: what the default of a setting is where it depends on more than the schema.
    """

    synonyms: ClassVar[Mapping[str, Synonym]] = {}
    default_words: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


#: A path, or a name that stands for one; ``~`` is the home folder, which no shell has replaced
#: behind a ``=``.
PathText = Annotated[
    str, Field(min_length=1), AfterValidator(os.path.expanduser), InWords("path or name")
]


def dump_yaml(section: Section) -> str:
    """The section as YAML, every setting in the order of its definition."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def setting(section: Section, key: str) -> Any:
    """The value of a setting by its dotted name."""
    value: Any = section
    for part in key.split("."):
        value = getattr(value, part)
    return value


def section_of(annotation: Any) -> type[Section] | None:
    """The Section in an annotation, also inside ``X | None``."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def leaf_keys(schema: type[Section], prefix: str = "") -> dict[str, Any]:
    """Dotted name and annotation of every setting of a schema."""
    leaves: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        inner = section_of(field.annotation)
        if inner:
            leaves.update(leaf_keys(inner, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = field.annotation
    return leaves


def nearest(word: str, words: Iterable[str], synonyms: Mapping[str, Synonym] | None = None) -> str:
    """``"; did you mean X?"`` for what a word most likely stands for, or nothing.

    Args:
        word: what was written, with the section that it was written in, if any.
        words: what there is.
        synonyms: see :class:`Section`.
    """
    names = list(words)
    last = word.rpartition(".")[2]
    synonym = _synonym(word, names, synonyms or {})
    if synonym and synonym.settings == (word,):
        return f"; it is a setting {synonym.but}"
    if synonym:
        but = f", {synonym.but}" if synonym.but else ""
        return f"; did you mean {' and '.join(synonym.settings)}{but}?"
    same = [name for name in names if "." in name and name.rpartition(".")[2] == last]
    if same:
        return f"; did you mean {' or '.join(same)}?"
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not close:
        ends = {name.rpartition(".")[2]: name for name in names}
        close = [ends[e] for e in difflib.get_close_matches(last, list(ends), n=1, cutoff=0.6)]
    return f"; did you mean {close[0]}?" if close else ""


def _synonym(key: str, names: list[str], synonyms: Mapping[str, Synonym]) -> Synonym | None:
    """The synonym for a key, unless its section is another and other sections have such a key."""
    section, _, word = key.lower().replace("-", "_").rpartition(".")
    found = synonyms.get(word)
    if found is None or not section or found.settings[0].startswith(f"{section}."):
        return found
    is_section = any(name.startswith(f"{section}.") for name in names)
    is_used = any(name.rpartition(".")[2] == word for name in names)
    return None if is_section and is_used else found


def _takes_text(annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_takes_text(a) for a in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Annotated:
        return _takes_text(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return all(isinstance(a, str) for a in typing.get_args(annotation))
    return annotation is str


def apply_overrides(
    data: Mapping[str, Any], overrides: Iterable[str], schema: type[Section]
) -> dict[str, Any]:
    """``data`` with ``section.key=value`` strings applied.

    The name is not a setting: it follows from the file.

    A text setting takes its value verbatim (``data.input=007`` is a folder of that name); others
    are read as YAML.

    Raises:
        RequestError: an unknown key, with the nearest right one, or no ``=``.
    """
    leaves = {key: kind for key, kind in leaf_keys(schema).items() if key != "name"}
    for override in overrides:
        key, sep, text = override.partition("=")
        if not sep:
            raise RequestError(f"{override!r} is not key=value")
        if key not in leaves:
            raise RequestError(f"unknown setting {key!r}{nearest(key, leaves, schema.synonyms)}")
        value: Any = text
        if not _takes_text(leaves[key]) or text == "null":
            value = parse_yaml(text, f"the value of {key}")
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        data = merge(data, nested)
    return dict(data)


def validate(schema: type[S], data: Mapping[str, Any], where: str) -> S:
    """Build a schema from plain data.

    Raises:
        RequestError: one sentence for the first thing wrong: where, what, the nearest valid name.
    """
    try:
        return schema.model_validate(dict(data))
    except ValidationError as e:
        first = e.errors()[0]
    parts = [p for p in first["loc"] if isinstance(p, str)]
    key = ".".join(parts)
    leaves = leaf_keys(schema)
    if first["type"] == "extra_forbidden":
        key = _first_key(key, first["input"])
        message = f"unknown setting {key!r}{nearest(key, leaves, schema.synonyms)}"
    elif first["type"] == "missing" and len(parts) < len(first["loc"]):
        message = f"{key} has too few values"
    elif first["type"] == "missing":
        message = f"{key} is missing"
    elif first["type"] == "value_error":
        message = f"{key + ': ' if key else ''}{first['ctx']['error']}"
    else:
        # In a union pydantic appends the name of the branch that it tried.
        while parts and ".".join(parts) not in leaves:
            parts.pop()
        detail = first["msg"][0].lower() + first["msg"][1:]
        message = f"{'.'.join(parts) or key}={first['input']!r}: {detail}"
        if first["type"] == "literal_error":
            message += nearest(str(first["input"]), _literals(leaves[".".join(parts)]))
    raise RequestError(f"{where}: {message}") from None


def _first_key(key: str, value: Any) -> str:
    """A key, or the first one in it where it holds others: ``optim.lr``, not ``optim``."""
    while isinstance(value, Mapping) and value:
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    return key


def _literals(annotation: Any) -> list[str]:
    found = [a for a in typing.get_args(annotation) if isinstance(a, str)]
    for inner in typing.get_args(annotation):
        found += _literals(inner)
    return found
