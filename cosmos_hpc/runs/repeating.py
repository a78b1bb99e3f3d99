"""The command that repeats a run."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from cosmos_hpc.config.clusters import BUILT_IN
from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils.mappings import flatten

#: Follow from the name of the recipe.
_OF_THE_NAME = ("name", "description")


def overrides_of(recipe: Recipe, base: Recipe) -> list[str]:
    """What to override in one recipe, ``key=value``, to get the settings of another."""
    new, old = (flatten(r.as_dict()) for r in (recipe, base))
    return [
        f"{key}={_as_override(value)}"
        for key, value in new.items()
        if value != old[key] and key not in _OF_THE_NAME
    ]


def _as_override(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def repeat_command(run: RunFolder, recipe: Recipe, cluster: str) -> str:
    """The command line that submits a run's request again, on the same cluster.

    It names the shipped recipe and what the run's settings differ in from it; of a recipe that is
    not shipped, the resolved one in the run folder.

    Args:
        run: its folder.
        recipe: resolved.
        cluster: name of the profile.

    Returns:
        One line for a shell.
    """
    if recipe.name in recipe_names():
        settings = [f"recipe={recipe.name}", *overrides_of(recipe, load_recipe(recipe.name))]
    else:
        settings = [f"recipe={run.recipe_file}"]
    place = [] if cluster == BUILT_IN else [f"cluster={cluster}"]
    words = ["cosmos-hpc", "submit", settings[0], *place, *settings[1:]]
    return " ".join(quoted(word) for word in words)


def quoted(word: str) -> str:
    r"""A word for bash, in printable characters: others as ``$'\xff'`` writes them."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + re.sub(r"[\\']|[^ -~]", _in_dollar_quotes, word) + "'"


def _in_dollar_quotes(match: re.Match[str]) -> str:
    character = match.group()
    if character in "\\'" or character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    # Bytes that are not UTF-8 come as halves of surrogate pairs.
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
