"""When a task of a stage is done: what its marker has to say for this recipe."""

from __future__ import annotations

from pathlib import Path

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.shards import read_marker
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files


def marked(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether there is a marker, whatever it says."""
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
    # A shard that was taken away is prepared anew, and joined with the others then.
    if not all(run.tokens.shard(n).is_dir() for n in range(run.data.num_shards())):
        return False
    # A continued run may ask for the shards to be joined after all.
    return bool(found.get("joined", True) or not recipe.data.join)


def train_is_done(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether as many steps were done as are wanted now: a continued run may ask for more."""
    found = files.read_json(marker)
    return found is not None and bool(found["steps"] >= recipe.train.max_steps)


#: What decides what the report of a run says.
_REPORTED = (
    "tokens/done.json",
    "tokens/failed_summary.json",
    "train/done.json",
    "evaluation/metrics.json",
)


def report_inputs(run: RunFolder) -> dict[str, str]:
    """Digests of the files that a report is made of, as far as there are any."""
    return {name: files.sha256(run.path / name) for name in _REPORTED if (run.path / name).exists()}


def report_is_done(run: RunFolder, recipe: Recipe, marker: Path, task: int) -> bool:
    """Whether there is a page, and what it tells is still so."""
    found = files.read_json(marker)
    return found is not None and bool(found.get("inputs") == report_inputs(run))
