"""Where the logs of a run are, and following them while it is worked on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cosmos_hpc.runs.attempts import attempted_tasks, read_attempt
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import STAGES
from cosmos_hpc.utils import files

#: Rest between looks for new logs, in times that a look took.
_REST = 20


def logs_of(
    folder: RunFolder, stage: str | None = None, task: int | None = None
) -> Iterator[tuple[str, Path]]:
    """Log files by ``STAGE`` or ``STAGE.TASK``, in the order in which they were begun."""
    rows = [
        (row["time"], row["stage"], row["task"], folder.path / row["log"])
        for row in files.read_jsonl(folder.log_index)
    ]
    for name in STAGES if stage is None else [stage]:
        for number in attempted_tasks(folder, name) if task is None else [task]:
            attempt = read_attempt(folder, name, number)
            if attempt:
                rows.append((attempt.started, name, number, attempt.log))
    for _, name, number, log in sorted(rows):
        if stage in (None, name) and task in (None, number):
            row = STAGES.get(name)  # a newer version may have more stages
            yield row.label(number) if row else name, log


def note_log(folder: RunFolder, stage: str, task: int, path: Path) -> None:
    """Remember where an attempt's log is, relative to the run folder."""
    row = {"stage": stage, "task": task, "log": str(path.relative_to(folder.path))}
    files.append_jsonl(folder.log_index, {**row, "time": round(time.time(), 3)})


def follow(
    folder: RunFolder,
    working: Callable[[], bool],
    stage: str | None = None,
    task: int | None = None,
    every: float = 0.5,
) -> Iterator[str]:
    """Text that is added to the run's newest log, stage after stage, while the run is worked on.

    Args:
        folder: of the run.
        working: says whether it is; asked at every look.
        stage, task: only logs of these.
        every: seconds between looks.
    """
    log, position = None, 0
    newest, look_at = None, -math.inf
    while True:
        at_work = working()
        began = time.monotonic()
        if began >= look_at or not at_work:
            found = [path for _, path in logs_of(folder, stage, task)]
            newest = found[-1] if found else None
            # With thousands of tasks this reads thousands of files: a small share of the time.
            look_at = time.monotonic() + _REST * (time.monotonic() - began)
        if newest != log:
            log, position = newest, 0
            yield f"==> {log} <==\n"
        text = b""
        if log and log.exists():
            with open(log, "rb") as f:
                f.seek(position)
                text = f.read()
            position += len(text)
        if text:
            yield text.decode(errors="replace")
        elif not at_work:
            return
        else:
            time.sleep(every)
