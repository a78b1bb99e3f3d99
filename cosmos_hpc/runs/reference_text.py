"""The reference of settings as text: for a terminal, and as the page of the documentation."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.runs.reference import Reference, Setting
from cosmos_hpc.utils.described import first_sentence

#: Columns of a terminal that names of defaults get in a list.
_DEFAULT_WIDTH = 20
#: More different values in recipes than these are not listed on the page.
_MOST_VALUES = 8

_HEAD = """\
# Settings

<!-- Written by `cosmos-hpc settings --markdown`; change the docstrings of the schemas instead. -->

Every setting of recipes and of cluster profiles. A setting is written `section.key=value` on the
command line, `cluster.key=value` for a cluster, or as YAML in a file; `null` is no value. The
command `generate` takes settings of the section `generate` without that word as well.

`cosmos-hpc settings train` lists those of a section in the terminal, `cosmos-hpc settings
train.learning_rate` shows one, and `--json` gives either as data. A name that is not a setting, but
known from elsewhere, such as `lr`, is an error that names the setting.

*Resume* says whether a run may be continued with another value. With another value of the others
it is another run, which needs another name. *Recipes* lists values in the shipped recipes, set by
themselves or by their `base`.
"""


def value_text(value: Any) -> str:
    """A value as it is written in an override: whole numbers without a fraction."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) and value else json.dumps(value)


def _default(setting: Setting) -> str:
    described = setting.described
    if described.required:
        return "required"
    return described.default_words or value_text(described.default)


def _by_value(setting: Setting) -> dict[str, list[str]]:
    """Names of recipes by the value that they set."""
    found: dict[str, list[str]] = {}
    for recipe, value in setting.recipes.items():
        found.setdefault(value_text(value), []).append(recipe)
    return found


def _kind(setting: Setting) -> str:
    described = setting.described
    return described.type + (f"; unit: {described.unit}" if described.unit else "")


def render(settings: Sequence[Setting]) -> str:
    """For a terminal: settings of one name whole, others as a line each."""
    if len({setting.name for setting in settings}) == 1:
        return "\n\n".join(map(_whole, settings))
    width = max(len(setting.name) for setting in settings)
    lines = []
    for setting in settings:
        default = textwrap.shorten(_default(setting), _DEFAULT_WIDTH, placeholder="...")
        says = first_sentence(setting.described.text).replace("`", "")
        kinds = f"[{', '.join(setting.kinds)}] " if setting.kinds else ""
        lines.append(f"{setting.name:<{width}}  {default:<{_DEFAULT_WIDTH}}  {kinds}{says}")
    # A line each on a terminal; a file or another program gets them whole.
    columns = shutil.get_terminal_size((0, 0)).columns or max(map(len, lines))
    return "\n".join(
        line if len(line) <= columns else f"{line[: columns - 3]}..." for line in lines
    )


def _whole(setting: Setting) -> str:
    text = textwrap.wrap(setting.described.text, 88, initial_indent="  ", subsequent_indent="  ")
    facts = {
        "value": _kind(setting),
        "default": _default(setting),
        "resume": "may change" if setting.changeable else "may not change; another run",
        "kinds": ", ".join(setting.kinds),
    }
    said = [f"  {word:<8} {fact}" for word, fact in facts.items() if fact]
    said += [
        f"  {'recipes' if not n else '':<8} {value}: {', '.join(recipes)}"
        for n, (value, recipes) in enumerate(_by_value(setting).items())
    ]
    return "\n".join([setting.name, *text, *said]).replace("`", "")


def markdown(reference: Reference) -> str:
    """The page: a table for each section, and for each group of kinds of clusters."""
    tables: dict[tuple[str, tuple[str, ...]], list[Setting]] = {}
    for setting in reference.settings:
        tables.setdefault((setting.section, setting.kinds), []).append(setting)
    most = max(len(kinds) for _, kinds in tables)
    parts = [_HEAD, "## Recipes\n"]
    for (section, kinds), settings in tables.items():
        if kinds and "## Clusters\n" not in parts:
            parts.append("## Clusters\n")
        parts.append(f"### {_title(section, kinds, every=len(kinds) == most)}\n")
        if section in reference.sections:
            parts.append(_sentence(reference.sections[section]) + "\n")
        parts.append(_table(settings) + "\n")
    return "\n".join(parts).rstrip()


def _title(section: str, kinds: tuple[str, ...], every: bool) -> str:
    if not kinds:
        return f"`{section}`" if section else "The recipe"
    where = (
        "every profile" if every else f"profiles of kind {' and '.join(f'`{k}`' for k in kinds)}"
    )
    inner = section.partition(".")[2]
    return f"`{inner}`, in {where}" if inner else where[0].upper() + where[1:]


def _table(settings: Sequence[Setting]) -> str:
    rows = ["| setting | value | default | resume | |", "|---|---|---|---|---|"]
    for setting in settings:
        described = setting.described
        code = not (described.required or described.default_words)
        cells = (
            f"`{setting.name}`",
            _kind(setting),
            f"`{_default(setting)}`" if code else _default(setting),
            "yes" if setting.changeable else "no",
            " ".join(filter(None, [_sentence(described.text), _recipes(setting)])),
        )
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(rows)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _recipes(setting: Setting) -> str:
    values = _by_value(setting)
    if len(values) > _MOST_VALUES:
        return "<br>*Recipes:* each its own."
    every = len(recipe_names())
    said = [
        f"`{value}` in {'all' if len(recipes) == every else ', '.join(recipes)}"
        for value, recipes in values.items()
    ]
    return f"<br>*Recipes:* {'; '.join(said)}." if said else ""
