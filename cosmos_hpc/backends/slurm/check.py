"""Says what will not work on a Slurm cluster, before anything is queued."""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmos_hpc.backends.slurm import commands as slurm
from cosmos_hpc.backends.slurm import containers
from cosmos_hpc.backends.slurm.commands import Facts, Partition
from cosmos_hpc.config.clusters import SlurmCluster, minutes
from cosmos_hpc.errors import explain_os_error
from cosmos_hpc.planning.plans import NEEDS, PYTHON_OF_JOBS
from cosmos_hpc.utils.settings import nearest


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``, ``problem``, or ``note`` for what may be meant so.
        text: what was found, and what to do.
    """

    level: str
    text: str


#: Stages and whether they run on GPUs.
STAGES = {"download": False, "preprocess": True, "finalize": False, "train": True}


def check(cluster: SlurmCluster) -> list[Finding]:
    """Compare a profile with the cluster that this machine belongs to.

    Raises:
        RequestError: there is no Slurm here, or it does not answer.
    """
    facts = slurm.read_facts()
    return [
        Finding("ok", f"Slurm {facts.version} of {facts.cluster} answers"),
        *_compared(cluster, facts),
        *_accepted(cluster),
        *_python(cluster),
        *_folders(cluster),
        *_environment(cluster),
    ]


def problems(cluster: SlurmCluster) -> list[str]:
    """What of a profile the cluster cannot do, without asking Slurm about any job.

    Raises:
        RequestError: there is no Slurm here, or it does not answer.
    """
    compared = _compared(cluster, slurm.read_facts())
    return [finding.text for finding in compared if finding.level == "problem"]


def _compared(cluster: SlurmCluster, facts: Facts) -> list[Finding]:
    return [
        *_partitions(cluster, facts),
        *_charged_to(cluster, facts),
        *_limits(cluster, facts),
        *_container(cluster, facts),
    ]


def _partitions(cluster: SlurmCluster, facts: Facts) -> Iterator[Finding]:
    for setting in ("gpu_partition", "cpu_partition"):
        name = getattr(cluster, setting)
        partition = facts.partition(name)
        if partition is None:
            names = [p.name for p in facts.partitions]
            hint = nearest(name, names) or f"; there are {', '.join(names)}"
            yield Finding("problem", f"{setting}: there is no partition {name}{hint}")
            continue
        if not partition.up:
            yield Finding("problem", f"{setting}: {name} is down")
        else:
            yield Finding("ok", f"{setting}: {name} is up, {partition.nodes} nodes")
        yield from _times(cluster, partition, setting == "gpu_partition")
        if setting == "gpu_partition":
            yield from _gpus(cluster, partition)


def _times(cluster: SlurmCluster, partition: Partition, with_gpus: bool) -> Iterator[Finding]:
    for stage in (s for s, gpus in STAGES.items() if gpus == with_gpus):
        asked = getattr(cluster.time, stage)
        if minutes(asked) > partition.limit:
            yield Finding(
                "problem",
                f"time.{stage}={asked} is above the {int(partition.limit)} minutes that "
                f"{partition.name} allows",
            )


def _gpus(cluster: SlurmCluster, partition: Partition) -> Iterator[Finding]:
    kind = cluster.gres.partition(":")[2]
    there = partition.gpus.get(kind, 0) if kind else max(partition.gpus.values(), default=0)
    if cluster.gpus_per_node > there:
        shown = ", ".join(f"{count} of {k or 'gpu'}" for k, count in partition.gpus.items())
        yield Finding(
            "problem",
            f"gpus_per_node={cluster.gpus_per_node} with gres={cluster.gres}, but a node of "
            f"{partition.name} has {shown or 'no GPUs'}",
        )
    if cluster.nodes > partition.nodes:
        yield Finding(
            "problem", f"nodes={cluster.nodes}, but {partition.name} has {partition.nodes}"
        )


def _charged_to(cluster: SlurmCluster, facts: Facts) -> Iterator[Finding]:
    if not facts.associations:
        if cluster.account or cluster.qos:
            yield Finding("note", "Slurm does not tell here which account and qos you may use")
        return
    accounts = sorted(facts.associations)
    if cluster.account and cluster.account not in accounts:
        yield Finding("problem", f"account={cluster.account}; yours are {', '.join(accounts)}")
        return
    allowed = set().union(
        *(qos for name, qos in facts.associations.items() if cluster.account in (None, name))
    )
    if cluster.qos and cluster.qos not in allowed:
        yield Finding("problem", f"qos={cluster.qos}; yours are {', '.join(sorted(allowed))}")


def _accepted(cluster: SlurmCluster) -> Iterator[Finding]:
    """What Slurm itself says to a job of each stage."""
    for stage, gpus in STAGES.items():
        count = (cluster.gpus_per_node if stage == "train" else 1) if gpus else 0
        nodes = cluster.nodes if stage == "train" else 1
        placement = slurm.placement(cluster, stage, count)
        reason = slurm.refusal(f"--nodes={nodes}", *placement, "--wrap", "true")
        if reason:
            yield Finding("problem", f"Slurm would not take a job of stage {stage}: {reason}")
        else:
            yield Finding("ok", f"Slurm would take a job of stage {stage}")


def _limits(cluster: SlurmCluster, facts: Facts) -> Iterator[Finding]:
    if cluster.max_array_size > facts.max_array_size:
        yield Finding(
            "problem",
            f"max_array_size={cluster.max_array_size}, but the cluster's MaxArraySize is "
            f"{facts.max_array_size}",
        )
    if facts.max_submit is not None and (cluster.max_submit or math.inf) > facts.max_submit:
        yield Finding(
            "problem",
            f"max_submit={cluster.max_submit}, but you may have {facts.max_submit} jobs in the "
            f"queue; with max_submit={facts.max_submit} array tasks prepare several shards each",
        )
    if not facts.accounting:
        yield Finding("note", "without accounting, Slurm forgets jobs soon after they end")


def _container(cluster: SlurmCluster, facts: Facts) -> Iterator[Finding]:
    reasons = containers.refusal(cluster, facts)
    yield from (Finding("problem", reason) for reason in reasons)
    if cluster.container and not reasons:
        yield Finding("ok", f"container: {cluster.container_runtime}, {cluster.container}")
    yield from (Finding("note", note) for note in containers.notes(cluster, facts))


def _python(cluster: SlurmCluster) -> Iterator[Finding]:
    """Whether the Python of jobs that need no container has their libraries."""
    if cluster.container:
        return
    libraries = dict(NEEDS.values())
    code = (
        "import sys, importlib.util as u; print(*(n for n in sys.argv[1:] if not u.find_spec(n)))"
    )
    try:
        words = [cluster.python, "-c", code, *libraries]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as e:
        yield Finding("note", f"python={cluster.python} does not run here: {e}")
        return
    missing = done.stdout.split()
    if not missing:
        yield Finding("ok", f"python: {cluster.python} has {', '.join(libraries)}")
        return
    # What is loaded in setup lines may bring them.
    yield Finding(
        "note" if cluster.setup else "problem",
        f"python={cluster.python} has no {', '.join(missing)}; "
        f"pip install -c constraints.txt '.[{libraries[missing[-1]]}]'{PYTHON_OF_JOBS}",
    )


def _folders(cluster: SlurmCluster) -> Iterator[Finding]:
    folder = Path(cluster.runs).absolute()
    existing = next(p for p in (folder, *folder.parents) if p.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as e:
        yield Finding("problem", explain_os_error(e, f"runs={cluster.runs}: writing to {existing}"))
    else:
        yield Finding("ok", f"runs: {folder} can be written")


def _environment(cluster: SlurmCluster) -> Iterator[Finding]:
    for name in cluster.environment:
        present = bool(os.environ.get(name))
        yield Finding("ok" if present else "note", f"{name} is {'set' if present else 'not set'}")
