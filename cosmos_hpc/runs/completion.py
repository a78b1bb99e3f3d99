"""When a task of a stage is done: what its marker must hold for this recipe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.shards import read_marker
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import without_defaults


def marked(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether there is a marker, whatever it holds."""
    return files.read_json(marker) is not None


def shard_is_done(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether a shard is published.

    Raises:
        WorkError: its marker is damaged.
    """
    return read_marker(marker.parent) is not None


def finalize_is_done(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether the shards that are there now were checked, and joined where that is wanted."""
    found = files.read_json(marker)
    if found is None:
        return False
    # A shard that was taken away is prepared again, and joined with the others then.
    if not all(run.tokens.shard(n).is_dir() for n in range(run.data.num_shards())):
        return False
    # A continued run may ask for the shards to be joined after all.
    return bool(found.get("joined", True) or not recipe.data.join)


def train_is_done(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether the wanted number of steps was trained: a continued run may ask for more."""
    found = files.read_json(marker)
    return found is not None and bool(found["steps"] >= recipe.train.max_steps)


def subject_of(run: RunFolder, recipe: Recipe) -> str | None:
    """A digest of what samples of a run are made from: its weights, and how they are drawn.

    Returns:
        None while the training is not done.
    """
    weights: Any = recipe.train.init_from
    if recipe.trains:
        if not train_is_done(run, recipe, run.train.done, 0):
            return None
        marker = files.read_json(run.train.done)
        weights = [marker["steps"], marker["checkpoint"]]
    # However many array tasks share them, samples that are there need not be made again.
    drawn = without_defaults(replace(recipe.generate, tasks=None, batch_size=None))
    subject = [weights, drawn, without_defaults(recipe.evaluate)]
    return hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]


def made_of_this(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether existing results were made from the current weights and settings."""
    found = files.read_json(marker)
    return found is not None and found["of"] == (subject_of(run, recipe) or "")


def generate_is_done(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether an array task has made its share of the samples that are wanted now."""
    found = files.read_json(marker)
    shared = found is not None and found["tasks"] == (recipe.generate.tasks or 1)
    return shared and made_of_this(run, recipe, marker, task)


#: What decides what the report of a run says.
_REPORTED = (
    "tokens/done.json",
    "tokens/failed_summary.json",
    "train/done.json",
    "evaluation/metrics.json",
)


def report_inputs(run: RunFolder) -> dict[str, str]:
    """Digests of the files that a report is made of, as far as there are any."""
    samples = [f"generated/tasks/{path.name}" for path in run.generated.markers()]
    there = [name for name in (*_REPORTED, *samples) if (run.path / name).exists()]
    return {name: files.sha256(run.path / name) for name in there}


def report_is_current(run: RunFolder, marker: Path) -> bool:
    """Whether there is a page that is still up to date."""
    found = files.read_json(marker)
    return found is not None and bool(found["inputs"] == report_inputs(run))


def report_is_done(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether there is a page, and the training has the wanted number of steps."""
    return subject_of(run, recipe) is not None and report_is_current(run, marker)
