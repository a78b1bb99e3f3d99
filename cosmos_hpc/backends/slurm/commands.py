"""Slurm's commands; no other module runs one."""

from __future__ import annotations

import math
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmos_hpc.backends.slurm.profile import minutes
from cosmos_hpc.errors import RequestError

#: States of a job that is in the queue; in all others it has ended.
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
_BETWEEN = "\x1f"


@dataclass(frozen=True)
class Partition:
    """A partition as sinfo shows it.

    Attributes:
        limit: minutes that a job may take; infinite without a limit.
        gpus: GPUs of a node by type; the type is empty where the cluster names none.
        cpus: of the node with the fewest.
    """

    name: str
    default: bool
    up: bool
    limit: float
    nodes: int
    gpus: dict[str, int]
    cpus: int


@dataclass(frozen=True)
class Facts:
    """What Slurm says of a cluster.

    Attributes:
        accounting: whether ``sacct`` works.
        associations: accounts of this user, each with the QOS that it may use; empty where Slurm
            does not tell.
        max_submit: most jobs of this user at a time; None without a limit that Slurm tells.
        container_options: flags that pyxis adds to srun; empty without it.
    """

    cluster: str
    version: str
    max_array_size: int
    accounting: bool
    partitions: list[Partition]
    associations: dict[str, set[str]]
    max_submit: int | None
    container_options: set[str]

    def partition(self, name: str) -> Partition | None:
        """A partition by name."""
        return next((p for p in self.partitions if p.name == name), None)


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


_SECONDS = 60
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


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Raises:
        RequestError: it is not installed here, or does not answer.
    """
    if not is_here(words[0]):
        raise RequestError(
            f"{words[0]} is not on the PATH: run this on a login node of the cluster"
        )
    try:
        return subprocess.run(
            words, env=environment(), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RequestError(
            f"{words[0]} has not answered for {_SECONDS} s; try again when Slurm is up"
        ) from None


def _output(*words: str) -> str:
    done = command(*words)
    if done.returncode:
        raise RequestError(f"{' '.join(words[:2])} failed: {last_line(done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    """What a command says at the end, which is where Slurm gives its reason."""
    return text.strip().rpartition("\n")[2]


def read_facts() -> Facts:
    """Ask Slurm about the cluster that this machine belongs to.

    Raises:
        RequestError: there is no Slurm here, or it does not answer.
    """
    config = dict(re.findall(r"^(\w+)\s*= (.*)$", _output("scontrol", "show", "config"), re.M))
    accounting = "none" not in config.get("AccountingStorageType", "none")
    associations, max_submit = _associations() if accounting else ({}, None)
    return Facts(
        cluster=config.get("ClusterName", "slurm").strip(),
        version=config.get("SLURM_VERSION", "").strip(),
        max_array_size=int(config.get("MaxArraySize", "1001")),
        accounting=accounting,
        partitions=_partitions(),
        associations=associations,
        max_submit=max_submit,
        container_options=container_options(),
    )


def container_options() -> set[str]:
    """Flags that pyxis adds to srun; none where the cluster has no pyxis."""
    found = set(re.findall(r"--container-[a-z-]+", command("srun", "--help").stdout))
    # From 23.02 on Slurm has a --container-id of its own.
    return found if "--container-image" in found else set()


def hides_jobs_of_others() -> bool:
    """Whether users of this cluster see nothing but their own jobs in the queue.

    Raises:
        RequestError: Slurm does not answer.
    """
    config = _output("scontrol", "show", "config")
    return re.search(r"^PrivateData\s*=.*\bjobs\b", config, re.M) is not None


def _partitions() -> list[Partition]:
    merged: dict[str, Partition] = {}
    for line in _output("sinfo", "-h", "-o", "%P|%a|%l|%D|%c|%G").splitlines():
        fields = line.split("|")
        if len(fields) != 6:
            continue  # a greeting of the site
        name, state, limit, nodes, cpus, gres = fields
        short = name.removesuffix("*")
        gpus = {kind: int(count) for kind, count in _GPU.findall(gres)}
        before = merged.get(short)
        for kind, count in before.gpus.items() if before else ():
            gpus[kind] = max(count, gpus.get(kind, 0))
        # A line for each kind of node.
        merged[short] = Partition(
            name=short,
            default=name.endswith("*"),
            up=state == "up",
            limit=math.inf if limit in ("infinite", "n/a") else minutes(_whole(limit)),
            nodes=int(nodes) + (before.nodes if before else 0),
            gpus=gpus,
            cpus=min(int(cpus.rstrip("+")), before.cpus if before else sys.maxsize),
        )
    return list(merged.values())


#: ``gpu:h100:8(S:0-1)`` or ``gpu:8``.
_GPU = re.compile(r"\bgpu:(?:([A-Za-z][\w.-]*):)?(\d+)")


def _whole(limit: str) -> str:
    """sinfo leaves out leading zeros: ``30:00`` is half an hour."""
    return f"00:{limit}" if limit.count(":") == 1 and "-" not in limit else limit


def _associations() -> tuple[dict[str, set[str]], int | None]:
    """Accounts with their qos, the default one first, and the limit of jobs in the queue."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    default = command("sacctmgr", "-nP", "show", "user", user, "format=defaultaccount").stdout
    words = ["sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account,qos,maxsubmit"]
    done = command(*words)
    accounts: dict[str, set[str]] = {}
    limits = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        fields = line.split("|")
        if len(fields) != 3:
            continue  # a greeting of the site
        account, qos, limit = fields
        accounts.setdefault(account, set()).update(filter(None, qos.split(",")))
        limits += [int(limit)] if limit.isdigit() else []
    names = sorted(accounts, key=lambda name: (name != default.strip(), name))
    return {name: accounts[name] for name in names}, min(limits, default=None)


def refusal(*flags: str) -> str | None:
    """Why Slurm would not take a job now; None if it would.

    Args:
        flags: of sbatch, or the path of a script that holds them.
    """
    done = command("sbatch", "--test-only", *flags)
    return None if done.returncode == 0 else last_line(done.stderr).strip()


def sbatch(script: Path, flags: Sequence[str], name: str) -> str:
    """Submit a script; returns the job's id.

    Some sites greet on standard output: the last line that is an id counts, and where there is
    none, the newest job of that name in the queue.

    Args:
        script: complete, with its ``#SBATCH`` lines.
        flags: of sbatch, on top of them.
        name: of the job in the queue.

    Raises:
        RequestError: Slurm does not take it, or does not answer.
    """
    done = command("sbatch", "--parsable", *flags, str(script))
    if done.returncode:
        raise RequestError(f"Slurm does not take {script}: {last_line(done.stderr)}")
    # On federated clusters the id comes with the name of its cluster.
    said = [line.strip() for line in done.stdout.splitlines()]
    ids = [line.partition(";")[0] for line in said if re.fullmatch(r"\d+(;\S+)?", line)]
    if not ids:
        ids = sorted({job.whole for job in queued([name]) if job.active}, key=int)
    if not ids:
        raise RequestError(
            f"sbatch took {script} and told no id, nor is a job of name {name} in the queue; "
            f"it said: {last_line(done.stdout)!r}"
        )
    return ids[-1]


def queued(names: Sequence[str]) -> list[SlurmJob]:
    """Jobs of these names, array tasks one by one; for some minutes also those that have ended.

    Raises:
        RequestError: Slurm does not answer.
    """
    form = _BETWEEN.join(["%i", "%j", "%k", "%T", "%r", "%S"])
    words = ["squeue", "-h", "-r", "--states=all", f"--name={','.join(names)}", "-o", form]
    done = command(*words)
    if done.returncode:
        raise RequestError(f"squeue failed: {last_line(done.stderr)}")
    jobs = []
    for line in done.stdout.splitlines():
        fields = line.split(_BETWEEN)
        if len(fields) != 6:
            continue  # a greeting of the site
        job_id, name, comment, state, reason, start = fields
        start = "" if start == "N/A" else start
        jobs.append(SlurmJob(job_id, name, comment, state, reason, start))
    return jobs


def mine() -> int:
    """How many jobs this user has in the queue, of this run or not, array tasks one by one.

    Raises:
        RequestError: Slurm does not answer.
    """
    done = command("squeue", "-h", "-r", "--me", "-o", "%i")
    if done.returncode:
        raise RequestError(f"squeue failed: {last_line(done.stderr)}")
    return sum(line.strip()[:1].isdigit() for line in done.stdout.splitlines())


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
        ids: of jobs, or of whole arrays.
        only_waiting: leave alone what has begun by the time that Slurm looks.

    Raises:
        RequestError: Slurm does not answer, or the jobs are somebody else's.
    """
    flags = ["--state=PENDING"] if only_waiting else []
    for start in range(0, len(ids), 500):
        done = command("scancel", *flags, *ids[start : start + 500])
        if "ermission denied" in done.stderr:
            raise RequestError(f"scancel failed: {last_line(done.stderr)}")


def depend(job_id: str, dependency: str) -> str:
    """Have a job that waits in the queue wait for others; why Slurm does not, empty if it does.

    Raises:
        RequestError: Slurm does not answer.
    """
    done = command("scontrol", "update", f"JobId={job_id}", f"Dependency={dependency}")
    return last_line(done.stderr) if done.returncode else ""
