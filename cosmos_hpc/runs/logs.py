"""Where the logs of a run are, and following them while it is worked on."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

from cosmos_hpc.backends.slurm import submit as slurm_submit
from cosmos_hpc.config.clusters import SlurmCluster, read_cluster
from cosmos_hpc.errors import RequestError
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
            yield f"{name}.{number}" if name == "preprocess" else name, log


def follow(
    folder: RunFolder, stage: str | None = None, task: int | None = None, every: float = 0.5
) -> Iterator[str]:
    """Text that is added to the run's newest log, stage after stage, while the run is worked on.

    Args:
        folder: of the run.
        stage, task: only logs of these.
        every: seconds between looks.
    """
    log, position = None, 0
    ask = _Asker(folder)
    newest, look_at = None, -math.inf
    while True:
        working = ask.working()
        began = time.monotonic()
        if began >= look_at or not working:
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
        elif not working:
            return
        else:
            time.sleep(every)


class _Asker:
    """Whether a run is worked on; asks Slurm not more often than it should be."""

    _SECONDS = 10.0

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._slurm = isinstance(read_cluster(folder.cluster_file), SlurmCluster)
        self._asked, self._answer = -math.inf, True

    def working(self) -> bool:
        if not self._slurm:
            return files.is_locked(self._folder.lock)
        if time.monotonic() - self._asked > self._SECONDS:
            self._asked = time.monotonic()
            with contextlib.suppress(RequestError):  # it may answer again
                self._answer = bool(slurm_submit.active_jobs(self._folder))
        return self._answer
