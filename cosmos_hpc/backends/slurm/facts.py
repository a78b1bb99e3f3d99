"""What Slurm says of a cluster: its partitions, limits, accounts and containers."""

from __future__ import annotations

import math
import os
import pwd
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from cosmos_hpc.backends.slurm.commands import command, config, output, sinfo
from cosmos_hpc.backends.slurm.profile import minutes


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
class QosLimits:
    """What a QOS allows; None without a limit.

    Attributes:
        jobs: in the queue, the smallest of its limits for a user, an account, and all together.
        minutes: of a job.
        gpus: at a time, the smallest of its limits for a job, a user, and all together.
    """

    jobs: int | None = None
    minutes: int | None = None
    gpus: int | None = None


@dataclass(frozen=True)
class Facts:
    """What Slurm says of a cluster.

    Attributes:
        accounting: whether ``sacct`` works.
        associations: accounts of this user, each with the QOS that it may use; empty where Slurm
            does not tell.
        max_submit: most jobs of this user at a time that associations allow; None without a limit
            that Slurm tells.
        qos_limits: of each QOS.
        partition_qos: by partition, the QOS that holds for all jobs there; ``N/A`` without one.
        default_qos: of jobs that name none.
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
    qos_limits: dict[str, QosLimits] = field(default_factory=dict)
    partition_qos: dict[str, str] = field(default_factory=dict)
    default_qos: str = ""

    def most_jobs(self, qos: str | None, partitions: Iterable[str]) -> int | None:
        """Most jobs of this user in the queue; None without a limit that Slurm tells.

        Args:
            qos: of the jobs; None: the default one.
            partitions: that they run in.
        """
        limits = [self.max_submit, *(one.jobs for one in self.ruling(qos, partitions).values())]
        return min((limit for limit in limits if limit is not None), default=None)

    def ruling(self, qos: str | None, partitions: Iterable[str]) -> dict[str, QosLimits]:
        """Limits of the QOS that hold for such jobs, by name; arguments as of :meth:`most_jobs`."""
        names = [qos or self.default_qos, *map(self.partition_qos.get, partitions)]
        return {name: self.qos_limits[name] for name in names if name in self.qos_limits}

    def partition(self, name: str) -> Partition | None:
        """A partition by name."""
        return next((p for p in self.partitions if p.name == name), None)


def read_facts() -> Facts:
    """Ask Slurm about the cluster that this machine belongs to.

    Raises:
        RequestError: there is no Slurm here, or it does not answer.
    """
    settings = config()
    accounting = "none" not in settings.get("AccountingStorageType", "none")
    associations, max_submit, default_qos = _associations() if accounting else ({}, None, "")
    return Facts(
        cluster=settings.get("ClusterName", "slurm"),
        version=settings.get("SLURM_VERSION", ""),
        max_array_size=int(settings.get("MaxArraySize", "1001")),
        accounting=accounting,
        partitions=_partitions(),
        associations=associations,
        max_submit=max_submit,
        container_options=container_options(),
        qos_limits=_qos_limits() if accounting else {},
        partition_qos=_partition_qos() if accounting else {},
        default_qos=default_qos,
    )


def container_options() -> set[str]:
    """Flags that pyxis adds to srun; none where the cluster has no pyxis."""
    found = set(re.findall(r"--container-[a-z-]+", command("srun", "--help").stdout))
    # From 23.02 on Slurm has a --container-id of its own.
    return found if "--container-image" in found else set()


def _partitions() -> list[Partition]:
    merged: dict[str, Partition] = {}
    for line in sinfo("%P|%a|%l|%D|%c|%G").splitlines():
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


#: ``gpu:h100:8(S:0-1)`` or ``gpu:8``; types may be numbers, such as those of ``gpu:3090:4``.
_GPU = re.compile(r"(?:^|,)gpu:(?:([^:,()]+):)?(\d+)(?![^(,])")


def _whole(limit: str) -> str:
    """sinfo leaves out leading zeros: ``30:00`` is half an hour."""
    return f"00:{limit}" if limit.count(":") == 1 and "-" not in limit else limit


def _partition_qos() -> dict[str, str]:
    """The QOS of each partition; ``N/A`` of one that has none."""
    shown = output("scontrol", "-a", "-o", "show", "partition")
    return dict(re.findall(r"^PartitionName=(\S+) .*? QoS=(\S+)", shown, re.M))


def _qos_limits() -> dict[str, QosLimits]:
    """What each QOS allows."""
    of_jobs = ["maxsubmitjobsperuser", "maxsubmitjobsperaccount", "grpsubmitjobs"]
    of_gpus = ["maxtresperjob", "maxtresperuser", "grptres"]
    form = ",".join(["name", "maxwall", *of_jobs, *of_gpus])
    found = {}
    for line in command("sacctmgr", "-nP", "show", "qos", f"format={form}").stdout.splitlines():
        fields = line.split("|")
        if len(fields) != 8:
            continue  # a greeting of the site
        jobs = [int(limit) for limit in fields[2:5] if limit.isdigit()]
        gpus = [int(count) for count in re.findall(r"gres/gpu=(\d+)", "|".join(fields[5:]))]
        wall = minutes(fields[1]) if fields[1] else None
        found[fields[0]] = QosLimits(min(jobs, default=None), wall, min(gpus, default=None))
    return found


def _associations() -> tuple[dict[str, set[str]], int | None, str]:
    """Accounts with their qos, the default one first; the limit of jobs in the queue; a job's qos.

    Slurm gives a job that names no qos the default of its association, or else ``normal``.
    """
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    default = command("sacctmgr", "-nP", "show", "user", user, "format=defaultaccount").stdout
    words = [
        "sacctmgr",
        "-nP",
        "show",
        "assoc",
        f"user={user}",
        "format=account,qos,maxsubmit,defaultqos",
    ]
    done = command(*words)
    accounts: dict[str, set[str]] = {}
    limits, defaults = [], {}
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        fields = line.split("|")
        if len(fields) != 4:
            continue  # a greeting of the site
        account, qos, limit, defaults[account] = fields
        accounts.setdefault(account, set()).update(filter(None, qos.split(",")))
        limits += [int(limit)] if limit.isdigit() else []
    names = sorted(accounts, key=lambda name: (name != default.strip(), name))
    default_qos = defaults[names[0]] if names else ""
    in_order = {name: accounts[name] for name in names}
    return in_order, min(limits, default=None), default_qos or "normal"
