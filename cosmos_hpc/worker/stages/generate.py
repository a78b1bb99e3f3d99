"""The generate stage: samples from the weights of a run, each a video with its record."""

from __future__ import annotations

import itertools
from typing import Any

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.completion import subject_of
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.utils.imports import large_imports, load
from cosmos_hpc.utils.progress import Progress, say
from cosmos_hpc.worker.generation.generator import Generator
from cosmos_hpc.worker.generation.items import Item, WeightsName, groups_of, items_of
from cosmos_hpc.worker.generation.weights import open_decoder, weights_of
from cosmos_hpc.worker.tokenizers.texts import free_memory


def generate(run: RunFolder, recipe: Recipe, task: int = 0) -> None:
    """Make an array task's share of the samples; those that are there already are kept.

    Raises:
        WorkError: weights, tokenizer or guard cannot be loaded, or no sample at all can be made.
    """
    subject = subject_of(run, recipe)
    if subject is None:
        raise WorkError(f"run {run.name} has no trained weights yet: its train stage is not done")
    with large_imports(freeze=True):
        kind = load(recipe.kind.generator)
    generator: Generator = kind(run, recipe)
    items = items_of(generator.clips, recipe)
    tasks = recipe.generate.tasks or 1
    groups = list(groups_of(items, recipe.generate.batch_size or 1))[task::tasks]
    if task == 0:
        _remove_others(run, {item.key for item in items})
        files.write_json(run.generated.total, len(items))
    todo = [group for group in groups if not all(is_made(run, item.key, subject) for item in group)]
    _make(generator, todo, sum(map(len, groups)), subject)
    _mark(run, task, tasks, subject, groups, len(items))


def is_made(run: RunFolder, key: str, subject: str) -> bool:
    """Whether a sample of what is asked for now is there."""
    record = files.read_json(run.generated.record(key))
    return record is not None and record["of"] == subject and run.generated.video(key).exists()


def _remove_others(run: RunFolder, keys: set[str]) -> None:
    """Remove samples of earlier settings that are not going to be replaced."""
    there = itertools.chain(run.generated.path.glob("*.*"), run.generated.refused.glob("*.json"))
    for path in there:
        if path.is_file() and path.stem not in keys and not path.name.startswith("."):
            path.unlink()


def _make(generator: Generator, groups: list[list[Item]], total: int, subject: str) -> None:
    """Generate groups, those of one model after the other."""
    run, recipe = generator.run, generator.recipe
    left = [item for group in groups for item in group]
    if left:
        generator.prepare(left)
    progress = Progress("samples", total, total - len(left))
    done = total - len(left)
    for which, same in itertools.groupby(groups, key=lambda group: group[0].weights):
        decoder = open_decoder(run, recipe, which)
        facts = _facts(run, recipe, which, subject)
        for group in same:
            for item in group:
                run.generated.record(item.key).unlink(missing_ok=True)
            generator.make(decoder, group, facts)
            done += len(group)
            progress.update(done)
        del decoder
        free_memory()


def _facts(run: RunFolder, recipe: Recipe, which: WeightsName, subject: str) -> dict[str, Any]:
    """What the records of all samples of some weights say."""
    weights = weights_of(run, recipe, which)
    return {
        "checkpoint": weights.name(run),
        "step": weights.step,
        "recipe": recipe.name,
        "versions": files.read_json(run.info)["versions"],
        "of": subject,
    }


def _mark(
    run: RunFolder, task: int, tasks: int, subject: str, groups: list[list[Item]], total: int
) -> None:
    own = [item.key for group in groups for item in group]
    refused = [key for key in own if run.generated.refusal(key).exists()]
    of_all = sorted(run.generated.refused.glob("*.json"))
    if total and len(of_all) == total:
        raise WorkError(files.read_json(of_all[0])["reason"])
    marker = {
        "of": subject,
        "tasks": tasks,
        "samples": len(own) - len(refused),
        "refused": len(refused),
    }
    files.write_json(marker_path(run, "generate", task), marker)
    if not total:
        say("there are no held-out clips to generate from: every video was trained on")
