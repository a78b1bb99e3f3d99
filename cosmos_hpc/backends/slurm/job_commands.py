"""Slurm's commands about jobs: what is queued, what has ended, and cancelling."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cosmos_hpc.backends.slurm import commands as slurm
from cosmos_hpc.errors import RequestError

#: States of a job that is in the queue; in all others it has ended.
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
_BETWEEN = "\x1f"


@dataclass(frozen=True)
class SlurmJob:
    """A job or array task as Slurm shows it.

    Attributes:
        id: ``123``, or ``123_4`` of an array task.
        name, comment: as given to sbatch.
        state: Slurm's word, such as ``PENDING``.
        reason: why it is in that state; ``None`` in Slurm's words where there is nothing to say.
        start: when it began, or may begin; empty where Slurm does not know.
    """

    id: str
    name: str
    comment: str
    state: str
    reason: str
    start: str

    @property
    def waits(self) -> bool:
        """Whether it is yet to begin."""
        return self.state in WAITING

    @property
    def active(self) -> bool:
        """Whether it is in the queue, waiting or running."""
        return self.waits or self.state in RUNNING

    @property
    def whole(self) -> str:
        """Id of the array that a task belongs to; of a single job its own."""
        return self.id.partition("_")[0]

    @property
    def index(self) -> int:
        """Of an array task; 0 for a single job."""
        return int(self.id.rpartition("_")[2]) if "_" in self.id else 0


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """This process without the variables of a job that it runs in, for libraries that call sbatch.

    They read them as flags.
    """
    clean = slurm.environment()
    hidden = {name: value for name, value in os.environ.items() if name not in clean}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def queued(names: Sequence[str]) -> list[SlurmJob]:
    """Jobs of these names, array tasks one by one; for some minutes also those that have ended.

    Raises:
        RequestError: Slurm does not answer.
    """
    form = _BETWEEN.join(["%i", "%j", "%k", "%T", "%r", "%S"])
    words = ["squeue", "-h", "-r", "--states=all", f"--name={','.join(names)}", "-o", form]
    done = slurm.command(*words)
    if done.returncode:
        raise RequestError(f"squeue failed: {slurm.last_line(done.stderr)}")
    jobs = []
    for line in done.stdout.splitlines():
        job_id, name, comment, state, reason, start = line.split(_BETWEEN)
        start = "" if start == "N/A" else start
        jobs.append(SlurmJob(job_id, name, comment, state, reason, start))
    return jobs


def mine() -> int:
    """How many jobs this user has in the queue, of this run or not, array tasks one by one.

    Raises:
        RequestError: Slurm does not answer.
    """
    done = slurm.command("squeue", "-h", "-r", "--me", "-o", "%i")
    if done.returncode:
        raise RequestError(f"squeue failed: {slurm.last_line(done.stderr)}")
    return len(done.stdout.splitlines())


def ended(names: Sequence[str], since: str) -> dict[str, str] | None:
    """States of jobs that accounting knows, by id: ``{"123_4": "TIMEOUT"}``.

    Args:
        names: of the jobs.
        since: time before which none of them was submitted, as ``2026-01-31T12:00:00``.

    Returns:
        None where there is no accounting, or none that answers.
    """
    if shutil.which("sacct") is None:
        return None
    words = ["sacct", "-nPX", f"--name={','.join(names)}", f"--starttime={since}"]
    # As they are later reported: of a job that was requeued, the latest state.
    try:
        done = slurm.command(*words, "--format=JobID,State")
    except RequestError:
        return None
    if done.returncode:
        return None
    rows = (line.split("|") for line in done.stdout.splitlines())
    return {job_id: re.split(r"[ +]", state)[0] for job_id, state in rows}


def cancel(ids: Sequence[str], only_waiting: bool = False) -> None:
    """Cancel jobs; those that have ended meanwhile are no error.

    Args:
        ids: of jobs, or of whole arrays.
        only_waiting: leave alone what has begun by the time that Slurm looks.

    Raises:
        RequestError: Slurm does not answer, or the jobs are somebody else's.
    """
    flags = ["--state=PENDING"] if only_waiting else []
    for start in range(0, len(ids), 500):
        done = slurm.command("scancel", *flags, *ids[start : start + 500])
        if "ermission denied" in done.stderr:
            raise RequestError(f"scancel failed: {slurm.last_line(done.stderr)}")


def depend(job_id: str, dependency: str) -> str:
    """Have a job that waits in the queue wait for others; why Slurm does not, empty if it does.

    Raises:
        RequestError: Slurm does not answer.
    """
    done = slurm.command("scontrol", "update", f"JobId={job_id}", f"Dependency={dependency}")
    return slurm.last_line(done.stderr) if done.returncode else ""
