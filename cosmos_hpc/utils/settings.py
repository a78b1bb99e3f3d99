"""Typed configuration: mappings and ``key=value`` overrides, checked before anything runs."""

from __future__ import annotations

import functools
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
import yaml
from msgspec import NODEFAULT, Meta, Struct

from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.annotations import Checked, InWords, checked, in_words, is_checked
from cosmos_hpc.utils.conversion import convert
from cosmos_hpc.utils.mappings import merge, parse_yaml

S = TypeVar("S", bound="Section")


class Synonym(Struct, frozen=True):
    """What a word that is no setting usually stands for elsewhere.

    Attributes:
        settings: what it is called here.
        but: how that differs from what the word says, as the end of a sentence.
    """

    settings: tuple[str, ...]
    but: str = ""


class WrongSetting(ValueError):
    """A value that the type of a setting does not allow; the text begins with its name."""


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """A group of settings: strict types, no unknown keys, no changes after loading.

    Types are checked by :func:`validate`; the functions in them, and whether the settings go with
    each other, whenever a section is made. Subclasses are ``frozen=True, kw_only=True`` as well:
    the former is for type checkers, the latter holds for the fields of one class.

    Attributes:
        synonyms: words from elsewhere, in lower case, that people try as names of its settings.
        default_words: what the default of a setting is where it depends on more than the schema.
    """

    synonyms: ClassVar[Mapping[str, Synonym]] = {}
    default_words: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for name, annotation in _checked_types(type(self)).items():
            try:
                value = checked(annotation, getattr(self, name))
            except ValueError as e:
                raise WrongSetting(f"{name}: {e}") from None
            msgspec.structs.force_setattr(self, name, value)
        self._fits_together()

    def _fits_together(self) -> None:
        """Refuse settings that do not go with each other.

        Raises:
            ValueError: says which.
        """

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON and YAML have it."""
        return {name: _plain(getattr(self, name)) for name in self.__struct_fields__}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.as_dict()
    return list(value) if isinstance(value, tuple) else value


#: A path, or a name that stands for one; ``~`` is the home folder, which no shell has replaced
#: behind a ``=``.
PathText = Annotated[str, Meta(min_length=1), Checked(os.path.expanduser), InWords("path or name")]


@functools.cache
def types_of(schema: type[Section]) -> dict[str, Any]:
    """The type of each setting, and of each section, of a schema."""
    return {field.name: field.type for field in msgspec.structs.fields(schema)}


@functools.cache
def _checked_types(schema: type[Section]) -> dict[str, Any]:
    return {name: kind for name, kind in types_of(schema).items() if is_checked(kind)}


def defaults(schema: type[Section]) -> dict[str, Any]:
    """The defaults of a schema, without what has none."""
    return {
        field.name: field.default if field.default_factory is NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(schema)
        if not field.required
    }


def without_defaults(section: Section) -> dict[str, Any]:
    """The settings that differ from their defaults, as plain data."""
    usual = defaults(type(section))
    values = {name: getattr(section, name) for name in section.__struct_fields__}
    return {
        name: without_defaults(value) if isinstance(value, Section) else _plain(value)
        for name, value in values.items()
        if name not in usual or value != usual[name]
    }


def dump_yaml(section: Section) -> str:
    """The section as YAML, every setting in the order of its definition."""
    return yaml.safe_dump(section.as_dict(), sort_keys=False, allow_unicode=True)


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
    for name, annotation in types_of(schema).items():
        inner = section_of(annotation)
        if inner:
            leaves.update(leaf_keys(inner, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = annotation
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
    import difflib

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
        RequestError: an unknown key, with the nearest right one, a group of settings, or no ``=``.
    """
    leaves = {key: kind for key, kind in leaf_keys(schema).items() if key != "name"}
    for override in overrides:
        key, sep, text = override.partition("=")
        if not sep:
            raise RequestError(f"{override!r} is not key=value")
        if key not in leaves:
            raise RequestError(_no_setting(key, leaves, schema))
        value: Any = text
        if not _takes_text(leaves[key]) or text == "null":
            value = parse_yaml(text, f"the value of {key}")
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        data = merge(data, nested)
    return dict(data)


#: Settings of a group that a refusal names at most.
_NAMED = 8


def _no_setting(key: str, leaves: Iterable[str], schema: type[Section]) -> str:
    """Why a key takes no value: it names a group of settings, or nothing."""
    if inside := [leaf for leaf in leaves if leaf.startswith(f"{key}.")]:
        more = len(inside) - _NAMED
        named = ", ".join(f"{leaf}=..." for leaf in inside[:_NAMED])
        return (
            f"{key} is a group of settings, which take their values one by one: {named}"
            f"{f' and {more} more' if more > 0 else ''}"
        )
    return f"unknown setting {key!r}{nearest(key, leaves, schema.synonyms)}"


def validate(schema: type[S], data: Mapping[str, Any], where: str) -> S:
    """Build a schema from plain data.

    Raises:
        RequestError: one sentence for the first thing wrong: where, what, the nearest valid name.
    """
    try:
        return convert(dict(data), schema)
    except msgspec.ValidationError as e:
        raise RequestError(f"{where}: {_explained(e, schema, data)}") from None


def _explained(error: msgspec.ValidationError, schema: type[Section], data: Any) -> str:
    """What msgspec says, in the words of the settings; it names the place at the end."""
    found = re.fullmatch(r"(.*?)(?: - at `(?:key` in `)?\$(.*)`)?", str(error), re.DOTALL)
    assert found
    text, place = found[1], found[2] or ""
    parts = re.findall(r"\w+", place)  # settings, and positions in lists
    key = ".".join(part for part in parts if not part.isdigit())
    if error.__cause__:  # it is of a function of ours
        joint = "." if isinstance(error.__cause__, WrongSetting) else ": "
        return f"{key}{joint if key else ''}{text}"
    value: Any = data
    wrong: Any = data  # of a list, the element
    for part in parts:
        wrong = wrong[int(part) if isinstance(wrong, (list, tuple)) else part]
        value = value if part.isdigit() else wrong
    if text.startswith("Object"):
        name = text.split("`")[1]
        key = f"{key}.{name}" if key else name
        if "missing" in text:
            return f"{key} is missing"
        key = _first_key(key, value[name])
        return f"unknown setting {key!r}{nearest(key, leaf_keys(schema), schema.synonyms)}"
    annotation = functools.reduce(_type_in, parts, schema)
    # Of the length of a text or list, and the pattern of a text, the words say nothing.
    rule = re.search(r"(of length >=|matching|that's a multiple) .*", text, re.DOTALL)
    hint = nearest(wrong, _literals(annotation)) if isinstance(wrong, str) else ""
    return f"{key}={value!r}: expected {in_words(annotation)}{', ' + rule[0] if rule else ''}{hint}"


def _type_in(annotation: Any, part: str) -> Any:
    """The type of a setting of a section, or of the elements of a list."""
    section = section_of(annotation)
    return types_of(section)[part] if section and not part.isdigit() else annotation


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
