"""When a task last made progress, and whether it has been quiet for unusually long.

Each function of the table of stages takes the run, the name of the stage and the number of a task
that is worked on.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from cosmos_hpc.runs.attempts import read_attempt
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import duration

#: A task is quiet after this multiple of what it usually takes, and not before this many seconds.
_TIMES, _AT_LEAST = 10, 300
#: Seconds that the start of a container and of Python may take: large images are fetched.
_START = 900


class Pace(Struct, frozen=True):
    """The progress of a task over time.

    Attributes:
        last: when it last did, seconds since the epoch.
        usual: seconds from one such moment to the next, as far as they are known.
    """

    last: float
    usual: float | None = None


def of_log(run: RunFolder, stage: str, task: int) -> Pace | None:
    """From the log, for a task that has no other signs of progress."""
    began = _began(run, stage, task)
    return Pace(max(began.at, _modified(began.log))) if began else None


def of_shard(run: RunFolder, stage: str, task: int) -> Pace | None:
    """By the journal of a shard, to which a line is added for each clip, a batch at a time."""
    began, journal = _began(run, stage, task), run.tokens.journal(task)
    last = _modified(journal)
    if began is None or last < began.at:
        return of_log(run, stage, task)
    batches = len(files.read_jsonl(journal)) / run.recipe().data.batch_size
    return Pace(last, (last - began.at) / max(1.0, batches))


def of_training(run: RunFolder, stage: str, task: int) -> Pace | None:
    """By the lines of steps and validations; the longest time between two of the last is usual."""
    began = _began(run, stage, task)
    since = began.at if began else math.inf
    times = [row["time"] for row in files.last_rows(run.train.metrics) if row["time"] >= since]
    if not times:
        return of_log(run, stage, task)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return Pace(times[-1], max(gaps, default=None))


def quiet(run: RunFolder, stage: str, task: int, pace: Pace) -> str:
    """Says that a task has been quiet for too long; empty where its pace explains it."""
    age, attempt = time.time() - pace.last, read_attempt(run, stage, task)
    begun = Path(f"{run.task_stop(stage, task)}.begun").exists()
    if attempt and not begun and pace.usual is None and age > _START:
        return f"its worker has not begun after {duration(time.time() - attempt.started)}"
    if pace.usual is None or age <= max(_AT_LEAST, _TIMES * pace.usual):
        return ""
    return f"quiet for {duration(age)}, where {duration(max(1, pace.usual))} is usual"


def hangs(marker: Path) -> str:
    """Says that the job of a task that is done has not ended; nothing where it may be about to."""
    age = time.time() - _modified(marker)
    return f"done since {duration(age)}, and its job has not ended" if age > _AT_LEAST / 5 else ""


class _Begun(NamedTuple):
    """When the latest attempt at a task began, seconds since the epoch, and its log."""

    at: float
    log: Path


def _began(run: RunFolder, stage: str, task: int) -> _Begun | None:
    attempt = read_attempt(run, stage, task)
    if attempt:
        return _Begun(attempt.started, attempt.log)
    rows = [r for r in files.read_jsonl(run.log_index) if (r["stage"], r["task"]) == (stage, task)]
    return _Begun(rows[-1]["time"], run.path / rows[-1]["log"]) if rows else None


def _modified(path: Path) -> float:
    """When a file was last written to, seconds since the epoch; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
