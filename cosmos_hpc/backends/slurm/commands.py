"""The one place that knows Slurm's commands: what a cluster is and allows."""

from __future__ import annotations

import math
import os
import pwd
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from cosmos_hpc.config.clusters import SlurmCluster, minutes
from cosmos_hpc.errors import RequestError

_SECONDS = 60
#: Set inside a job, and read by sbatch and srun as flags: a login shell inside an allocation would
#: pass its own node and task counts on. What a person has set for squeue would hide jobs.
_INHERITED = re.compile(r"^(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SCANCEL|SINFO|SACCT|SCONTROL)_")
#: Say where the cluster is, not what the job is.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_TIME_FORMAT"}


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


def environment() -> dict[str, str]:
    """This process's variables without those of a job that it may run in."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not _INHERITED.match(name)
    }


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Raises:
        RequestError: it is not installed here, or does not answer.
    """
    if shutil.which(words[0]) is None:
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
        name, state, limit, nodes, cpus, gres = line.split("|")
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
        account, qos, limit = line.split("|")
        accounts.setdefault(account, set()).update(filter(None, qos.split(",")))
        limits += [int(limit)] if limit.isdigit() else []
    names = sorted(accounts, key=lambda name: (name != default.strip(), name))
    return {name: accounts[name] for name in names}, min(limits, default=None)


def placement(cluster: SlurmCluster, stage: str, gpus: int) -> list[str]:
    """Flags of sbatch that say where a stage's job runs and what it is charged to.

    Args:
        cluster: the profile.
        stage: name of the stage.
        gpus: of one node; 0 for a job on the CPU partition.
    """
    flags = [f"--partition={cluster.gpu_partition if gpus else cluster.cpu_partition}"]
    flags += [f"--time={getattr(cluster.time, stage)}"]
    flags += [f"--account={cluster.account}"] if cluster.account else []
    flags += [f"--qos={cluster.qos}"] if cluster.qos else []
    flags += [f"--gres={cluster.gres}:{gpus}"] if gpus else []
    return [*flags, *cluster.sbatch]


def refusal(*flags: str) -> str | None:
    """Why Slurm would not take a job now; None if it would.

    Args:
        flags: of sbatch, or the path of a script that holds them.
    """
    done = command("sbatch", "--test-only", *flags)
    return None if done.returncode == 0 else last_line(done.stderr).strip()
