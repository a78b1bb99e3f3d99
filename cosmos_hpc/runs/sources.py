"""What to generate from: weights of a run, of a checkpoint, or those that a recipe names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from cosmos_hpc.config.generation import Generate
from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder, action_stats_of
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import apply_overrides, nearest, validate


class Source(Struct, frozen=True):
    """Weights to generate from, and the model that they are of.

    Attributes:
        recipe: of the model, its tokenizer and its clips.
        weights: path of a checkpoint, or a repository on the Hub.
        run: that made them; None for others.
    """

    recipe: Recipe
    weights: str
    run: RunFolder | None = None


def find_source(text: str, recipe: str | None = None, runs: str = "runs") -> Source:
    """Find the source that a user names.

    Args:
        text: name or path of a run, path of a checkpoint in any form, name or path of a recipe, or
            the Hub repository that a recipe names.
        recipe: name or path of the recipe whose model the weights are of; a run and a recipe say so
            themselves.
        runs: folder of runs.

    Raises:
        RequestError: it is none of these, a run without a checkpoint, a recipe without published
            weights, or a checkpoint of which nobody says what recipe it is of.
    """
    for path in (Path(text), Path(runs) / text):
        if (path / "run.json").is_file():
            folder = RunFolder(path)
            return Source(folder.recipe(), str(newest_checkpoint(folder)), folder)
    if text in recipe_names() or text.endswith((".yaml", ".yml")):
        return _published(load_recipe(text))
    if Path(text).exists():
        return _checkpoint(Path(text).absolute(), recipe)
    published = {known.train.init_from: known for known in map(load_recipe, recipe_names())}
    if text in published:
        # Several recipes may begin from one repository: the one that is asked for, if any is.
        return _published(load_recipe(recipe) if recipe else _plainest(text))
    there = [path.parent.name for path in Path(runs).glob("*/run.json")]
    hint = nearest(text, [*there, *recipe_names()]) or (
        f"; recipes with published weights are {', '.join(_with_weights())}"
    )
    raise RequestError(f"{text!r} is neither a run, nor a checkpoint, nor a recipe{hint}")


def newest_checkpoint(run: RunFolder) -> Path:
    """The checkpoint that a run's training ended with, or the last complete one.

    Raises:
        RequestError: there is none yet.
    """
    if found := saved_checkpoint(run):
        return found
    if not run.recipe().trains:
        raise RequestError(
            f"run {run.name} only generates; name what it generates from, "
            f"{run.recipe().train.init_from}"
        )
    raise RequestError(f"run {run.name} has no checkpoint yet; cosmos-hpc status says more")


def saved_checkpoint(run: RunFolder) -> Path | None:
    """As :func:`newest_checkpoint`, or None."""
    marker = files.read_json(run.train.done)
    if marker is not None:
        return run.path / str(marker["checkpoint"])
    found = {}
    for path in run.train.checkpoints.glob("step=*"):
        steps = steps_of(path)
        unfinished = path.with_name(f"{path.name}-unfinished").exists()
        if steps and not unfinished and (path / "weights" / "metadata.json").is_file():
            found[steps] = path
    return found[max(found)] if found else None


def steps_of(checkpoint: Path) -> int | None:
    """Steps before a checkpoint was written, by its name; NeMo counts them from 0."""
    step = re.match(r"step=(\d+)", checkpoint.name)
    return int(step[1]) + 1 if step else None


def _published(recipe: Recipe) -> Source:
    if recipe.train.init_from is None:
        raise RequestError(
            f"recipe {recipe.name} has no published weights; generate from a run of it, or from "
            f"one of {', '.join(_with_weights())}"
        )
    return Source(recipe, recipe.train.init_from)


def _with_weights() -> list[str]:
    return [name for name in recipe_names() if load_recipe(name).train.init_from]


def _plainest(repository: str) -> Recipe:
    """The recipe of the shortest name whose weights a repository holds."""
    recipes = [load_recipe(name) for name in sorted(recipe_names(), key=len)]
    return next(recipe for recipe in recipes if recipe.train.init_from == repository)


def _checkpoint(path: Path, recipe: str | None) -> Source:
    """A checkpoint of a run's training, or any other whose recipe is named."""
    if recipe:
        return Source(load_recipe(recipe), str(path))
    for folder in path.parents:
        if (folder / "run.json").is_file():
            run = RunFolder(folder)
            return Source(run.recipe(), str(path), run)
    raise RequestError(
        f"{path} does not say which model and clips it is for; add recipe=NAME, one of "
        f"{', '.join(recipe_names())}, or the path of your own"
    )


def generation_recipe(source: Source, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run that generates from a source and trains nothing.

    Args:
        source: the weights.
        overrides: ``key=value`` for the recipe, where settings of its section ``generate`` may
            stand without that word: ``input=frame.png``.

    Raises:
        RequestError: an unknown or impossible setting, or no input.
    """
    named = [
        f"generate.{text}" if text.partition("=")[0] in Generate.__struct_fields__ else text
        for text in overrides
    ]
    data = source.recipe.as_dict()
    data["data"]["input"] = None
    data["train"]["init_from"] = source.weights
    data["generate"] |= {"tasks": None, "batch_size": None, "input": None, "prompt": None}
    stats = [action_stats_of(Path(source.weights))]
    if source.run:
        stats.append(source.run.tokens.action_stats)
    found = next((path for path in stats if path.is_file()), None)
    data["generate"]["action_stats"] = str(found.absolute()) if found else None
    changed = apply_overrides(data, named, Recipe)
    if not changed["generate"]["input"]:
        raise RequestError(
            "input is missing; give input=FILE, a picture, a video or a list of them"
        )
    return validate(Recipe, changed, f"recipe {source.recipe.name}")
