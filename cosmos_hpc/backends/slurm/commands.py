"""Slurm's commands; no other module runs one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmos_hpc.errors import RequestError

#: States of a job that is in the queue; in all others it has ended.
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
_BETWEEN = "\x1f"
#: States of nodes that take no jobs now and may do so again.
_NOT_UP = re.compile("down|drain|fail|maint|reboot|unk")


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
    def array_id(self) -> str:
        """Id of the array that a task belongs to; of a single job its own."""
        return self.id.partition("_")[0]

    @property
    def index(self) -> int:
        """Of an array task; 0 for a single job."""
        return int(self.id.rpartition("_")[2]) if "_" in self.id else 0


_SECONDS = 60
#: Characters of the names that are given to squeue: Linux takes 131071 bytes in one argument.
_LONGEST_NAMES = 100_000
#: Seconds before a command is tried again that Slurm was too busy for.
_PAUSES = (1.0, 3.0, 10.0)
#: With which greetings of a site are coloured.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: What commands say of a controller that is busy, starts again, or hands over to another one.
_BUSY = re.compile(
    "Socket timed out|Zero Bytes were transmitted|Unable to contact slurm controller|"
    "backup controller in standby mode"
)
#: Set inside a job, and read by sbatch and srun as flags: a login shell inside an allocation would
#: pass its own node and task counts on. What a person has set for squeue would hide jobs.
_INHERITED = re.compile(r"^(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SCANCEL|SINFO|SACCT|SCONTROL)_")
#: Say where the cluster is, not what the job is.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_TIME_FORMAT"}


def environment() -> dict[str, str]:
    """This process's variables without those of a job that it may run in."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not _INHERITED.match(name)
    }


def is_here(name: str) -> bool:
    """Whether one of Slurm's commands is installed on this machine."""
    return shutil.which(name) is not None


def silence() -> str:
    """Why no Slurm answers on this machine; empty where one does."""
    if not is_here("sbatch"):
        return "Slurm is not on this machine"
    try:
        config()
    except RequestError as e:
        # Its commands are here, and no cluster is configured, or its controller is down.
        return f"Slurm does not answer here ({e})"
    return ""


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Raises:
        RequestError: it is not installed here, or does not answer.
    """
    if not is_here(words[0]):
        raise RequestError(
            f"{words[0]} is not on the PATH: run this on a login node of the cluster"
        )
    for pause in (*_PAUSES, None):
        try:
            done = subprocess.run(
                words,
                env=environment(),
                capture_output=True,
                # Greetings, and names of others' jobs, are in any encoding.
                encoding="utf-8",
                errors="replace",
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise RequestError(
                f"{words[0]} has not answered for {_SECONDS} s; try again when Slurm is up"
            ) from None
        done.stdout, done.stderr = _COLOUR.sub("", done.stdout), _COLOUR.sub("", done.stderr)
        # What sbatch was to submit may have been taken all the same.
        submits = words[0] == "sbatch" and "--test-only" not in words
        if pause is None or submits or not _passes(done):
            break
        time.sleep(pause)
    return done


def _passes(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command failed because Slurm was too busy to answer."""
    return done.returncode != 0 and _BUSY.search(done.stderr) is not None


def output(*words: str) -> str:
    """What a command of Slurm prints.

    Raises:
        RequestError: it is not installed here, fails, or does not answer.
    """
    done = command(*words)
    if done.returncode:
        name = words[0] if words[1].startswith("-") else " ".join(words[:2])
        raise RequestError(f"{name} failed: {reason(done.stderr)}")
    return done.stdout


def reason(text: str) -> str:
    """The complete reason that a command gives for its failure, on one line.

    Slurm gives its own reason last; what a site's plug-in tells the user stands before it.
    """
    lines = [re.sub(r"^s\w+: (?:error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))


def config() -> dict[str, str]:
    """Settings of the cluster that this machine belongs to, by their names in ``slurm.conf``.

    Raises:
        RequestError: Slurm does not answer.
    """
    said = output("scontrol", "show", "config")
    return {name: value.strip() for name, value in re.findall(r"^(\w+)\s*= (.*)$", said, re.M)}


def cluster_name() -> str:
    """Name of the cluster that this machine belongs to.

    Raises:
        RequestError: Slurm does not answer.
    """
    return name_in(config())


def name_in(said: Mapping[str, str]) -> str:
    """Name of the cluster whose settings these are."""
    return said.get("ClusterName", "slurm")


def hides_jobs_of_others(said: Mapping[str, str]) -> bool:
    """Whether users of the cluster with these settings see only their own jobs in the queue."""
    return re.search(r"\bjobs\b", said.get("PrivateData", "")) is not None


def job_refusal(*flags: str) -> str | None:
    """Why Slurm would not take a job now; None if it would.

    Args:
        flags: of sbatch, or the path of a script that holds them.
    """
    done = command("sbatch", "--test-only", *flags)
    return None if done.returncode == 0 else reason(done.stderr)


def awaited_nodes(partition: str, why: str) -> str | None:
    """What a job would wait for that Slurm could not place now; None where waiting does not help.

    ``sbatch --test-only`` refuses what the nodes that are up cannot do; sbatch itself queues it,
    and refuses what the others could not do either.

    Args:
        partition: one, or several with commas.
        why: what :func:`job_refusal` gave.
    """
    if "node" not in why.lower():
        return None
    counts: Counter[str] = Counter()
    for line in sinfo("%P|%D|%T").splitlines():
        name, number, state = [*line.split("|"), "", ""][:3]  # less of a greeting of the site
        if name.removesuffix("*") in partition.split(","):
            counts[state.rstrip("*~#!%$@^-") if _NOT_UP.match(state) else ""] += int(number)
    away = {state: number for state, number in counts.items() if state}
    if not away:
        return None
    states = ", ".join(f"{number} {state}" for state, number in away.items())
    return f"of {sum(counts.values())} nodes of {partition}, {states}; it waits until they are back"


def sinfo(form: str) -> str:
    """Partitions, hidden ones as well, a line for each kind of node; numbers are whole ones.

    Raises:
        RequestError: Slurm does not answer.
    """
    return output("sinfo", "-a", "-h", "--noconvert", "-o", form)


def sbatch(script: Path, flags: Sequence[str], name: str, known: Collection[str] = ()) -> str:
    """Submit a script; returns the job's id.

    Some sites greet on standard output: the last line that is an id counts, and where there is
    none, the newest job of that name in the queue.

    Args:
        script: complete, with its ``#SBATCH`` lines.
        flags: of sbatch, on top of them.
        name: of the job in the queue.
        known: ids of other jobs of that name.

    Raises:
        RequestError: Slurm does not take it, or does not answer.
    """
    for pause in (*_PAUSES, None):
        done = command("sbatch", "--parsable", *flags, str(script))
        if not _passes(done):
            break
        # A controller that was too busy to answer may take the job a moment later.
        time.sleep(pause or 0)
        if ids := _jobs_named(name, known):
            return ids[-1]
    if done.returncode:
        raise RequestError(f"Slurm does not take {script}: {with_remedy(reason(done.stderr))}")
    # On federated clusters the id comes with the name of its cluster.
    said = [line.strip() for line in done.stdout.splitlines()]
    ids = [line.partition(";")[0] for line in said if re.fullmatch(r"\d+(;\S+)?", line)]
    ids = ids or _jobs_named(name, known)
    if not ids:
        raise RequestError(
            f"sbatch took {script} and told no id, nor is a job of name {name} in the queue; "
            f"it said: {done.stdout.strip()[-200:]!r}"
        )
    return ids[-1]


def _jobs_named(name: str, known: Collection[str]) -> list[str]:
    """Ids of jobs of a name that are in the queue, but for known ones, the newest last.

    Raises:
        RequestError: Slurm does not answer.
    """
    found = {job.array_id for job in queued([name]) if job.active} - set(known)
    return sorted(found, key=int)


def with_remedy(why: str) -> str:
    """A refusal, and a remedy where it is about a limit on the number of jobs."""
    if not re.search("(Max|Grp)SubmitJob", why):
        return why
    return f"{why}; max_submit in the profile keeps to a limit of jobs in the queue"


def queued(names: Sequence[str] | None) -> list[SlurmJob]:
    """Jobs of these names, array tasks one by one; for some minutes also those that have ended.

    None: of any name.

    Raises:
        RequestError: Slurm does not answer.
    """
    form = _BETWEEN.join(["%i", "%j", "%k", "%T", "%r", "%S"])
    chosen = [] if names is None else [f"--name={','.join(names)}"]
    words = ["squeue", "-a", "-h", "-r", "--states=all", *chosen, "-o", form]
    jobs = []
    for line in output(*words).splitlines():
        fields = line.split(_BETWEEN)
        if len(fields) != 6:
            continue  # a greeting of the site
        job_id, name, comment, state, why, start = fields
        start = "" if start == "N/A" else start
        jobs.append(SlurmJob(job_id, name, comment, state, why, start))
    return jobs


def queued_of_many(names: Collection[str]) -> list[SlurmJob]:
    """As :func:`queued`, of more names than a command line can hold.

    Raises:
        RequestError: Slurm does not answer.
    """
    chosen = [*names] if sum(map(len, names)) + len(names) < _LONGEST_NAMES else None
    return [job for job in queued(chosen) if job.name in names]


def memory_of(job_id: str) -> int | None:
    """Bytes of memory that a job is going to have on all its nodes together; None: not known."""
    shown = command("scontrol", "show", "job", job_id).stdout
    found = re.search(r"\b(?:Req)?TRES=\S*\bmem=([0-9.]+)([KMGTP]?)", shown)
    if not found or not float(found[1]):  # all that the nodes have
        return None
    return int(float(found[1]) * 1024 ** " KMGTP".index(found[2] or "M"))


def mine() -> int:
    """How many jobs this user has in the queue, of this run or not, array tasks one by one.

    Raises:
        RequestError: Slurm does not answer.
    """
    said = output("squeue", "-a", "-h", "-r", "--me", "-o", "%i")
    return sum(line.strip()[:1].isdigit() for line in said.splitlines())


def ended(names: Sequence[str], since: str) -> dict[str, str] | None:
    """States of jobs that accounting knows, by id: ``{"123_4": "TIMEOUT"}``.

    Args:
        names: of the jobs.
        since: time before which none of them was submitted, as ``2026-01-31T12:00:00``.

    Returns:
        None where there is no accounting, or none that answers.
    """
    if not is_here("sacct"):
        return None
    words = ["sacct", "-nPX", f"--name={','.join(names)}", f"--starttime={since}"]
    # As they are later reported: of a job that was requeued, the latest state.
    try:
        done = command(*words, "--format=JobID,State")
    except RequestError:
        return None
    if done.returncode:
        return None
    rows = (line.split("|") for line in done.stdout.splitlines() if line.count("|") == 1)
    return {job_id: re.split(r"[ +]", state)[0] for job_id, state in rows}


def cancel(ids: Sequence[str], only_waiting: bool = False) -> None:
    """Cancel jobs; those that have ended meanwhile are no error.

    Args:
        ids: of jobs, or of arrays.
        only_waiting: leave alone what has begun by the time that Slurm looks.

    Raises:
        RequestError: Slurm stays too busy or does not answer, or the jobs are somebody else's.
    """
    flags = ["--state=PENDING"] if only_waiting else []
    for start in range(0, len(ids), 500):
        done = command("scancel", *flags, *ids[start : start + 500])
        if _passes(done) or "ermission denied" in done.stderr:
            raise RequestError(f"scancel failed: {reason(done.stderr)}")


def depend(job_id: str, dependency: str) -> str:
    """Have a job that waits in the queue wait for others; why Slurm does not, empty if it does.

    Raises:
        RequestError: Slurm does not answer.
    """
    done = command("scontrol", "update", f"JobId={job_id}", f"Dependency={dependency}")
    return reason(done.stderr) if done.returncode else ""
