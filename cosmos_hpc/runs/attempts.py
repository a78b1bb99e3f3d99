"""What the scripts of Slurm jobs noted about their tasks: when, where, and how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files


@dataclass(frozen=True)
class Attempt:
    """The latest attempt at a task.

    Attributes:
        job: id, ``123`` or ``123_4``.
        restart: how often the job had been started before.
        node: where it ran.
        log: its log file; attempts of one job share it.
        started: seconds since the epoch.
        why: how it ended, ``done``, ``failed``, ``stopped``, ``killed``, ``cancelled`` or, of a
            worker that did not start, ``unstarted``; empty while it runs, and where it could not
            say.
    """

    job: str
    restart: int
    node: str
    log: Path
    started: int
    why: str


def read_attempt(run: RunFolder, stage: str, task: int) -> Attempt | None:
    """The latest attempt at a task; None before the first."""
    started: dict[str, Any] = {}
    why = ""
    for row in files.read_jsonl(run.attempts(stage, task)):
        if "start" in row:
            started, why = row, ""
        else:
            why = row["why"]
    if not started:
        return None
    log = run.path / started["log"]
    return Attempt(started["job"], started["restart"], started["node"], log, started["start"], why)


def attempted_tasks(run: RunFolder, stage: str) -> list[int]:
    """Tasks of a stage that a job has begun."""
    found = run.attempts(stage, 0).parent.glob(f"{stage}.*")
    return sorted(int(path.suffix[1:]) for path in found)
