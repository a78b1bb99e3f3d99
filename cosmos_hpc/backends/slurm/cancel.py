"""Takes the jobs of a run out of the queue, and waits until they have ended."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from cosmos_hpc.backends.slurm import commands
from cosmos_hpc.backends.slurm.commands import SlurmJob
from cosmos_hpc.backends.slurm.queue import active_jobs
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console
from cosmos_hpc.utils.progress import duration

_POLL_SECONDS = 1.0
#: Seconds between words about what a cancel waits for.
_SAY_SECONDS = 30.0


def cancel(run: RunFolder, now: bool, console: Console) -> int:
    """Take what is queued out of the queue, ask what runs to stop, and wait until it has.

    Args:
        run: its folder.
        now: kill what runs.
        console: where to say what is waited for.

    Returns:
        How many jobs and array tasks were in the queue.

    Raises:
        RequestError: Slurm does not answer.
    """
    found = [job for _, job in active_jobs(run)]
    if not found:
        return 0
    files.write_atomic(run.stop_request, "")
    began, said = time.monotonic(), -math.inf
    while left := active_jobs(run):
        # A job may have queued itself again before it saw the request. Whole arrays: each task
        # that is named by itself becomes a job of its own to Slurm, which are limited.
        chosen = dict.fromkeys(job.array_id for _, job in left if now or job.waits)
        commands.cancel(list(chosen), only_waiting=not now)
        waited = time.monotonic() - began
        if waited - said >= _SAY_SECONDS and (words := _waits_for(left, now)):
            console.say(f"  {words}" + (f" ({duration(waited)})" if said >= 0 else ""))
            said = waited
        time.sleep(_POLL_SECONDS)
    return len(found)


def _waits_for(left: Sequence[tuple[str, SlurmJob]], now: bool) -> str:
    """What a cancel waits for; empty where only jobs are left that have not begun."""
    running = [f"{stage} (job {job.id}, {job.state})" for stage, job in left if not job.waits]
    if not running:
        return ""
    more = f" and {len(running) - 3} more" if len(running) > 3 else ""
    words = f"waiting for {', '.join(running[:3])}{more}"
    if now:
        return f"{words} to be ended by Slurm"
    return f"{words} to stop at a safe point; cancel --now kills what runs"
