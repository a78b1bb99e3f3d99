"""The stages of a run: the spec and command line of each, and what is still to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.shards import read_marker
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.snapshots import LAUNCHER
from cosmos_hpc.utils import files

#: In order; each needs the ones before it.
STAGES = ("download", "preprocess", "finalize", "train")


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: one of :data:`STAGES`.
        tasks: array tasks; 1 for a single job.
        ranks: processes of a task, started by torchrun when there are several.
    """

    name: str
    tasks: int = 1
    ranks: int = 1


def stages_of(run: RunFolder, recipe: Recipe) -> list[Stage]:
    """The stages of a run, in order."""
    return list_stages(run.num_shards(), recipe.train.ranks)


def list_stages(shards: int, ranks: int) -> list[Stage]:
    """The stages for so many shards and ranks of the training, in order."""
    return [
        Stage("download"),
        Stage("preprocess", tasks=shards),
        Stage("finalize"),
        Stage("train", ranks=ranks),
    ]


def ask_for(run: RunFolder, names: Sequence[str]) -> None:
    """Remember that these stages were asked for, besides those of earlier submits."""
    before = (files.read_json(run.asked) or {"stages": []})["stages"]
    files.write_json(run.asked, {"stages": [s for s in STAGES if s in {*before, *names}]})


def asked_for(run: RunFolder) -> list[str]:
    """The stages that were asked for by any submit; all where only the text of a dry run was."""
    return list((files.read_json(run.asked) or {"stages": STAGES})["stages"])


def write_specs(run: RunFolder, recipe: Recipe) -> None:
    """Write the spec file of every stage: all that its command needs to know."""
    for stage in STAGES:
        files.write_json(
            run.spec(stage), {"stage": stage, "recipe": recipe.model_dump(mode="json")}
        )


def task_script(run: RunFolder, stage: Stage, task: int = 0, code: Path | None = None) -> list[str]:
    """A Python script and its arguments that run one task of a stage on one rank.

    A script instead of a module: Python puts the script's folder first, so that the run's snapshot
    is what runs, whatever the working folder or PYTHONPATH hold.
    """
    return [str((code or run.code()) / LAUNCHER), str(run.spec(stage.name)), str(task)]


def task_command(run: RunFolder, stage: Stage, task: int = 0) -> list[str]:
    """Command line of one task of a stage on one rank."""
    return [sys.executable, *task_script(run, stage, task)]


def is_done(run: RunFolder, recipe: Recipe, stage: str, task: int) -> bool:
    """Whether a task's results are whole, by its marker on the disk."""
    if stage == "preprocess":
        return read_marker(run.shard(task)) is not None
    marker = files.read_json(run.marker(stage, task))
    if marker is None:
        return False
    if stage == "finalize":
        # A continued run may ask for the shards to be joined after all.
        return bool(marker.get("joined", True) or not recipe.data.join)
    if stage == "train":
        # A continued run may ask for more steps than were done.
        return bool(marker["steps"] >= recipe.train.max_steps)
    return True


def missing_tasks(
    run: RunFolder, recipe: Recipe, stage: Stage, only: Sequence[int] | None = None
) -> list[int]:
    """Tasks of a stage that are not done, of all or of ``only`` some."""
    if stage.name == "finalize" and not all(run.shard(n).is_dir() for n in range(run.num_shards())):
        # A shard that was taken away is prepared anew, and joined with the others then.
        return [0]
    tasks = range(stage.tasks) if only is None else only
    return [task for task in tasks if not is_done(run, recipe, stage.name, task)]
