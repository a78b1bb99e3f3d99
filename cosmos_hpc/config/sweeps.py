"""Sweeps in a request: settings with several values, and the runs that they make.

``train.learning_rate=1e-4,3e-4`` has two values, where a setting takes one number, truth value or
word of a few. Texts and lists may hold commas themselves, so that several of them are written as
``train.init_from=choice(first.pt,second.pt)``; a list from Python stands for several values, unless
the setting takes a list.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.settings import leaf_keys, setting

#: Runs of a sweep at most: a slip of the finger should not fill a queue.
MOST = 200
#: Sections whose settings can be swept, but for those that decide what is prepared.
_SWEPT = ("model", "train")
_PREPARES = ("model.action_width", "model.context_width")
_CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)
#: What a name of a run cannot hold.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
#: Characters of a run's name that the values may add; file systems allow 255 in all.
_LONGEST = 120


class Combination(Struct, frozen=True):
    """One run of a sweep.

    Attributes:
        recipe: resolved.
        settings: those that are swept, each with its value in this run.
    """

    recipe: Recipe
    settings: dict[str, Any]


def swept_values(overrides: Iterable[str]) -> dict[str, list[str]]:
    """The settings of a recipe that overrides give several values, each with these as text.

    Raises:
        RequestError: a value is empty, or the setting cannot be swept.
    """
    kinds = leaf_keys(Recipe)
    found: dict[str, list[str]] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        # As for all overrides, the last one of a setting counts.
        found.pop(key, None)
        values = _values(text, kinds[key]) if key in kinds else None
        if values is None:
            continue
        if len(values) < 2 or not all(values):
            raise RequestError(f"{override}: a sweep needs two values or more, none of them empty")
        _check_sweepable(key, values)
        found[key] = values
    return found


def _values(text: str, annotation: Any) -> list[str] | None:
    """The values in a text; None where it is a single one."""
    text = text.strip()
    if explicit := _CHOICE.fullmatch(text):
        return _split(explicit[1])
    # Python's lists arrive in brackets.
    if text.startswith("[") and text.endswith("]") and not _may_be(annotation, _is_list):
        found = _split(text[1:-1])
    elif "," in text and not _may_be(annotation, _has_commas):
        found = text.split(",")
    else:
        return None
    return [value.strip().strip("\"'") for value in found]


def _split(text: str) -> list[str]:
    """Split at commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _may_be(annotation: Any, test: Callable[[Any], bool]) -> bool:
    """Whether a test holds for what an annotation allows, or for one of several that it allows."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(_may_be(one, test) for one in inner)
    if origin is typing.Annotated:
        return _may_be(inner[0], test)
    return test(annotation)


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (list, tuple, dict)


def _has_commas(annotation: Any) -> bool:
    """Whether values are anything but numbers, truth values or words of a few."""
    words = typing.get_origin(annotation) is typing.Literal
    return not words and annotation not in (bool, int, float, types.NoneType)


def _check_sweepable(key: str, values: Sequence[str]) -> None:
    section = key.partition(".")[0]
    if section in _SWEPT and key not in _PREPARES:
        return
    one = f"{key}={values[0]}"
    if section in ("data", "task") or key in _PREPARES:
        raise RequestError(
            f"{key} has {len(values)} values, and it decides what is prepared, which the runs of a "
            f"sweep share; submit one run for each value, as with {one}"
        )
    raise RequestError(
        f"{key} has {len(values)} values, and it changes nothing of what is trained; submit one "
        f"run with {one}, and the same again with another value when it is done"
    )


def combinations(recipe: str, overrides: Sequence[str]) -> list[Combination]:
    """The runs that a request stands for: one for each combination; none where nothing is swept.

    Args:
        recipe: name, or path of a YAML file.
        overrides: ``key=value`` of the recipe.

    Raises:
        RequestError: the settings of a run are wrong, a value is there twice, there are more than
            :data:`MOST` runs, or the recipe does not train.
    """
    swept = swept_values(overrides)
    if not swept:
        return []
    count = 1
    for values in swept.values():
        count *= len(values)
    if count > MOST:
        raise RequestError(f"a sweep of {count} runs; there may be {MOST}: give fewer values")
    others = [text for text in overrides if text.partition("=")[0] not in swept]
    found: list[Combination] = []
    for chosen in itertools.product(*swept.values()):
        words = [f"{key}={value}" for key, value in zip(swept, chosen, strict=True)]
        resolved = load_recipe(recipe, [*others, *words])
        settings = {key: setting(resolved, key) for key in swept}
        if any(one.settings == settings for one in found):
            raise RequestError(f"the sweep has {' '.join(words)} twice")
        found.append(Combination(resolved, settings))
    if not found[0].recipe.trains:
        raise RequestError("a sweep trains, and a recipe with generate.input only generates")
    return found


def run_names(name: str, settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the runs of a sweep, which follow from their values alone: ``x-lr1e-4``.

    So that a repeated or a larger sweep finds the runs that are there.

    Args:
        name: of the sweep.
        settings: those that are swept in each run, in one order.
    """
    short = _short_keys([*settings[0]])
    found = ["".join(f"-{short[key]}{_in_name(one[key])}" for key in one) for one in settings]
    if len({*found}) < len(found) or max(map(len, found)) > _LONGEST:
        found = [
            f"{ending[:_LONGEST]}-{_digest(one)}"
            for ending, one in zip(found, settings, strict=True)
        ]
    return [name + ending for ending in found]


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Initials of the words of each setting, ``lr`` for ``train.learning_rate``.

    A single word stays, and so does what others would be mistaken for.
    """
    short = {key: _initials(key.rpartition(".")[2]) for key in keys}
    clashing = {one for one in short.values() if [*short.values()].count(one) > 1}
    return {key: key if one in clashing else one for key, one in short.items()}


def _initials(word: str) -> str:
    return "".join(part[:1] for part in word.split("_")) if "_" in word else word


def _in_name(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"_{'none' if value is None else str(value).lower()}"
    if isinstance(value, float):
        return _number(value)
    text = _NOT_IN_NAMES.sub("-", str(value)).strip("-")
    return text if text[:1].isdigit() else f"_{text}"


def _number(value: float) -> str:
    """A number in the shorter of its two forms: ``0.01``, ``3e-5``."""
    plain = f"{value:.12g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    mantissa, _, exponent = f"{value:.11e}".partition("e")
    scientific = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return scientific if len(scientific) < len(plain) else plain


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
