"""What the scripts of Slurm jobs noted about their tasks: when, where, and how they ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files


class Attempt(Struct, frozen=True):
    """An attempt at a task.

    Attributes:
        job: id, ``123`` or ``123_4``.
        restart: how often the job had been started before.
        node: where it ran.
        log: its log file; attempts of one job share it.
        started: seconds since the epoch.
        why: how it ended, ``done``, ``failed``, ``stopped``, ``killed``, ``cancelled`` or, of a
            worker that did not start, ``unstarted``; empty while it runs, and where it could not
            say.
        ended: seconds since the epoch; None while it runs, and where it could not say.
    """

    job: str
    restart: int
    node: str
    log: Path
    started: int
    why: str
    ended: int | None = None


def read_attempts(run: RunFolder, stage: str, task: int) -> list[Attempt]:
    """All attempts at a task, in their order."""
    noted: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for row in files.read_jsonl(run.attempts(stage, task)):
        if "start" in row:
            noted.append((row, {}))
        elif noted:
            noted[-1] = (noted[-1][0], row)
    return [
        Attempt(
            begin["job"],
            begin["restart"],
            begin["node"],
            run.path / begin["log"],
            begin["start"],
            end.get("why", ""),
            end.get("end"),
        )
        for begin, end in noted
    ]


def read_attempt(run: RunFolder, stage: str, task: int) -> Attempt | None:
    """The latest attempt at a task; None before the first."""
    attempts = read_attempts(run, stage, task)
    return attempts[-1] if attempts else None


def attempted_tasks(run: RunFolder, stage: str) -> list[int]:
    """Tasks of a stage that a job has begun."""
    found = run.attempts(stage, 0).parent.glob(f"{stage}.*")
    return sorted(int(path.suffix[1:]) for path in found)
