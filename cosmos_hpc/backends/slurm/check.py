"""Says what will not work on a Slurm cluster, before anything is queued."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cosmos_hpc.backends.findings import (
    Finding,
    environment_findings,
    python_finding,
    runs_finding,
)
from cosmos_hpc.backends.slurm import commands as slurm
from cosmos_hpc.backends.slurm import containers, images
from cosmos_hpc.backends.slurm.facts import Facts, Partition, read_facts
from cosmos_hpc.backends.slurm.gpu_names import gpus_named
from cosmos_hpc.backends.slurm.profile import SlurmCluster, minutes
from cosmos_hpc.backends.slurm.script import placement
from cosmos_hpc.backends.slurm.secrets import find_secrets
from cosmos_hpc.config.gpus import gpu_bytes, known_gpu
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.stages import STAGES
from cosmos_hpc.utils.settings import nearest

#: Memory of a GPU is given as it is sold, or as PyTorch finds it.
_AS_MUCH = 1.1
#: What helps where the Python of a login node has not all that jobs need.
PYTHON_OF_JOBS = ", or say python: or container: in the profile, where jobs find it"


def check(cluster: SlurmCluster) -> list[Finding]:
    """Compare a profile with the cluster that this machine belongs to.

    Raises:
        RequestError: there is no Slurm here, or it does not answer.
    """
    facts = read_facts()
    return [
        Finding("ok", f"Slurm {facts.version} of {facts.cluster} answers"),
        *_compared(cluster, facts),
        *_accepted(cluster),
        *_python(cluster, facts),
        runs_finding(cluster),
        *environment_findings(cluster.environment),
        *_secrets(cluster),
    ]


def _secrets(cluster: SlurmCluster) -> Iterator[Finding]:
    """Where jobs get secret values from."""
    try:
        found = find_secrets(cluster)
    except RequestError as e:
        yield Finding("problem", str(e))
        return
    if found.read:
        yield Finding("ok", f"jobs read {', '.join(sorted(found.read))} by themselves")
    if note := found.note():
        yield Finding("note", note)


def problems(cluster: SlurmCluster) -> list[str]:
    """What in a profile the cluster cannot do, without asking Slurm about any job.

    Raises:
        RequestError: there is no Slurm here, or it does not answer.
    """
    compared = _compared(cluster, read_facts())
    return [finding.text for finding in compared if finding.level == "problem"]


def _compared(cluster: SlurmCluster, facts: Facts) -> list[Finding]:
    return [
        *_partitions(cluster, facts),
        *_charged_to(cluster, facts),
        *_limits(cluster, facts),
        *_waits(cluster, facts),
        *_container(cluster, facts),
    ]


def _partitions(cluster: SlurmCluster, facts: Facts) -> Iterator[Finding]:
    for setting in ("gpu_partition", "cpu_partition"):
        # Slurm takes a list of them, and the one that begins the job first.
        for name in getattr(cluster, setting).split(","):
            yield from _partition(cluster, facts, setting, name)


def _partition(cluster: SlurmCluster, facts: Facts, setting: str, name: str) -> Iterator[Finding]:
    partition = facts.partition(name)
    if partition is None:
        names = [p.name for p in facts.partitions]
        hint = nearest(name, names) or f"; there are {', '.join(names)}"
        yield Finding("problem", f"{setting}: there is no partition {name}{hint}")
        return
    if not partition.up:
        yield Finding("problem", f"{setting}: {name} is down")
    else:
        yield Finding("ok", f"{setting}: {name} is up, {partition.nodes} nodes")
    yield from _times(cluster, partition, setting == "gpu_partition")
    if setting == "gpu_partition":
        yield from _gpus(cluster, partition)


def _times(cluster: SlurmCluster, partition: Partition, with_gpus: bool) -> Iterator[Finding]:
    for stage in (name for name, row in STAGES.items() if row.gpus == with_gpus):
        asked = cluster.time_of(stage)
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
    names = [kind] if kind else [*partition.gpus]
    for name in names:
        yield from _gpu_type(cluster, partition, name, only=len(names) == 1)


def _gpu_type(
    cluster: SlurmCluster, partition: Partition, name: str, only: bool
) -> Iterator[Finding]:
    """Whether the memory that plans count on is that of the GPUs which Slurm calls ``name``.

    Where they are not the ``only`` ones there, flags of sbatch may choose others.
    """
    possible = gpus_named(name)
    if not possible or cluster.gpu in possible:
        return
    most = max(gpu_bytes(known_gpu(gpu)) for gpu in possible)
    too_much = gpu_bytes(cluster.gpu) > _AS_MUCH * most
    if too_much or isinstance(cluster.gpu, str):
        yield Finding(
            "problem" if too_much and only else "note",
            f"gpu={cluster.gpu}, but Slurm calls GPUs of {partition.name} {name}; set gpu to "
            f"{' or '.join(possible)}, or to their memory in GB, which plans count on",
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
    """Whether Slurm itself would accept a job of each stage."""
    for stage, row in STAGES.items():
        count = (cluster.gpus_per_node if row.ranks else 1) if row.gpus else 0
        nodes = cluster.nodes if row.ranks else 1
        flags = [f"--nodes={nodes}", *placement(cluster, stage, count)]
        reason = slurm.job_refusal(*flags, "--wrap", "true")
        if reason and (awaited := slurm.awaited_nodes(cluster.partition(count), reason)):
            yield Finding("note", f"a job of stage {stage} would have to wait: {awaited}")
        elif reason:
            yield Finding("problem", f"Slurm would not take a job of stage {stage}: {reason}")
        else:
            yield Finding("ok", f"Slurm would take a job of stage {stage}")


def _limits(cluster: SlurmCluster, facts: Facts) -> Iterator[Finding]:
    if cluster.max_array_size > facts.max_array_size:
        none = "; with 0 shards are prepared by jobs of their own"
        yield Finding(
            "problem",
            f"max_array_size={cluster.max_array_size}, but the cluster's MaxArraySize is "
            f"{facts.max_array_size}{'' if facts.max_array_size else none}",
        )
    partitions = f"{cluster.gpu_partition},{cluster.cpu_partition}".split(",")
    most = facts.most_jobs(cluster.qos, partitions)
    if most is not None and (cluster.max_submit or math.inf) > most:
        yield Finding(
            "problem",
            f"max_submit={cluster.max_submit}, but you may have {most} jobs in the "
            f"queue; with max_submit={most} array tasks prepare several shards each",
        )
    if not facts.accounting:
        yield Finding("note", "without accounting, Slurm forgets jobs soon after they end")


def _waits(cluster: SlurmCluster, facts: Facts) -> Iterator[Finding]:
    """What Slurm queues and, where it keeps to the limits of a QOS, never starts."""
    for gpus, partitions in ((True, cluster.gpu_partition), (False, cluster.cpu_partition)):
        for name, limits in facts.ruling(cluster.qos, partitions.split(",")).items():
            end = f"that QOS {name} allows: it may wait for ever"
            for stage in (row.name for row in STAGES.values() if row.gpus == gpus):
                asked = cluster.time_of(stage)
                if minutes(asked) > (limits.minutes or math.inf):
                    words = f"time.{stage}={asked} is above the {limits.minutes} minutes {end}"
                    yield Finding("note", words)
            if gpus and limits.gpus is not None and cluster.max_gpus > limits.gpus:
                words = f"a job of {cluster.max_gpus} GPUs is above the {limits.gpus} {end}"
                yield Finding("note", words)


def _container(cluster: SlurmCluster, facts: Facts) -> Iterator[Finding]:
    reasons = containers.container_problems(cluster, facts)
    yield from (Finding("problem", reason) for reason in reasons)
    if cluster.container and not reasons:
        yield Finding("ok", f"container: {cluster.container_runtime}, {cluster.container}")
    yield from (Finding("note", note) for note in containers.notes(cluster, facts))


def _python(cluster: SlurmCluster, facts: Facts) -> Iterator[Finding]:
    """Whether the Python of jobs has their libraries."""
    if cluster.container:
        if not containers.container_problems(cluster, facts):
            yield from images.python_findings(cluster)
        return
    try:
        lacks = images.lacking(cluster.python)
    except (OSError, ValueError) as e:
        yield Finding("note", f"python={cluster.python} does not run here: {e}")
        return
    # What is loaded in setup lines may bring what is missing.
    level = "note" if cluster.setup else "problem"
    yield python_finding(cluster.python, lacks, PYTHON_OF_JOBS, level)
