"""Prints the script with which a shell completes the command line.

The script holds all words that do not depend on where it is used, and looks for runs and profiles
itself: completing starts no Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SHELLS = ("bash", "zsh")
#: Functions of the script that complete an argument, by its name in the parser.
_ARGUMENTS = {
    "run": "_cosmos_hpc_runs",
    "runs": "_cosmos_hpc_runs",
    "settings": "_cosmos_hpc_settings",
    "stage": "_cosmos_hpc_words @STAGES@",
    "place": '_cosmos_hpc_clusters "cluster="',
}
#: Those of certain commands.
_OF_COMMANDS = {
    ("generate", "source"): ["_cosmos_hpc_runs", '_cosmos_hpc_recipes ""'],
    ("recipes", "name"): ['_cosmos_hpc_recipes ""'],
    ("download", "settings"): ['_cosmos_hpc_recipes ""', "_cosmos_hpc_settings"],
    ("cluster check", "name"): ['_cosmos_hpc_clusters ""'],
    # Their settings are not those of recipes.
    ("cluster check", "settings"): [],
    ("convert", "settings"): [],
    ("sample-videos", "settings"): [],
    ("small-tokenizer", "settings"): [],
}


def completion_script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for a shell, one of :data:`SHELLS`.

    Args:
        shell: its name.
        parser: of the command line.
    """
    import shlex
    from pathlib import Path

    from cosmos_hpc.config.recipe_files import recipe_names
    from cosmos_hpc.runs.stages import STAGES

    folder = Path(__file__).parent
    text = (folder / "completion.sh").read_text() + (folder / f"completion.{shell}").read_text()
    filled = {
        "@CASES@": "\n".join(_cases(parser)),
        "@STAGES@": shlex.join(STAGES),
        "@RECIPES@": shlex.join(recipe_names()),
        "@SETTINGS@": shlex.join(f"{key}=" for key in _settings()),
    }
    for mark, words in filled.items():
        text = text.replace(mark, words)
    return text


def _settings() -> list[str]:
    """Names of all settings that a request may change."""
    from cosmos_hpc.backends.kinds import schemas
    from cosmos_hpc.config.clusters import OVERRIDE_PREFIX
    from cosmos_hpc.config.generation import Generate
    from cosmos_hpc.config.recipes import Recipe
    from cosmos_hpc.utils.settings import leaf_keys

    of_clusters = {key: None for schema in schemas().values() for key in leaf_keys(schema)}
    found = [*leaf_keys(Recipe), *(OVERRIDE_PREFIX + key for key in of_clusters)]
    # In `generate`, those of its own section go without its name.
    found += Generate.__struct_fields__
    return [key for key in found if key not in ("name", "cluster.name", "cluster.kind")]


def _cases(parser: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    """Branches of the script, those of more words first."""
    import shlex

    inner = _subparsers(parser)
    for name, below in inner.items():
        yield from _cases(below, f"{before} {name}".strip())
    command, _, action = before.partition(" ")
    pattern = f"'{command} {action}'" if action else f"'{command} '*"
    flags = [flag for one in parser._actions for flag in one.option_strings if flag[:2] == "--"]
    lines = [f"_cosmos_hpc_words {shlex.join([*inner, *flags])}"]
    for one in parser._actions:
        if one.choices and not inner:
            lines.append(f"_cosmos_hpc_words {shlex.join(one.choices)}")
        usual = [_ARGUMENTS[one.dest]] if one.dest in _ARGUMENTS else []
        lines += _OF_COMMANDS.get((before, one.dest), usual)
    body = "\n".join(f"            {line}" for line in lines)
    yield f"        {pattern})\n{body}\n            ;;"


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}
