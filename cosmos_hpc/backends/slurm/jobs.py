"""How a stage is divided into Slurm jobs and arrays, their sizes and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cosmos_hpc.backends.slurm.commands import SlurmJob
from cosmos_hpc.backends.slurm.profile import MAX_SINGLE_JOBS, SlurmCluster
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import RunStage

#: Characters of ``--array`` that Slurm takes are 4096 with the end and the throttle: scattered
#: shards, as after a partial failure, need more.
_LONGEST_RANGES = 4000
#: Jobs that a stage becomes at most where there are no arrays: each is a call of sbatch.
_MOST_SINGLES = 500


@dataclass(frozen=True)
class Array:
    """A job array over shards.

    Array index ``i`` prepares shard ``first + i``, then every ``stride``-th after it.

    Attributes:
        indices: of the array tasks, ascending.
        first: shard of index 0.
        stride: shards from one of an array task to its next; as many as there are shards where
            each has a task of its own.
        throttle: array tasks at the same time.
        after: position of the array that has to end before this one begins, among those submitted
            together; None for one that begins at once.
        single: whether it is a job without an array, which does the work of index 0.
    """

    indices: Sequence[int]
    first: int
    stride: int
    throttle: int
    after: int | None = None
    single: bool = False

    @property
    def spec(self) -> str:
        """For ``--array``: ``0-9,12%4``."""
        return f"{ranges(self.indices)}%{self.throttle}"


@dataclass(frozen=True)
class JobSpec:
    """One sbatch call.

    Attributes:
        stage: what it runs.
        nodes: of the job.
        gpus: of each node.
        processes: ranks on each node.
        array: over shards; None for a single job.
        part: number of the array among those of the stage.
    """

    stage: RunStage
    nodes: int = 1
    gpus: int = 0
    processes: int = 1
    array: Array | None = None
    part: int = 0

    @property
    def job_array(self) -> bool:
        """Whether it is an array to Slurm."""
        return self.array is not None and not self.array.single

    @property
    def ranks(self) -> int:
        """Processes on all nodes."""
        return self.nodes * self.processes

    @property
    def name(self) -> str:
        """Of its script: the stage, and the part where there are several."""
        return f"{self.stage.name}-{self.part}" if self.part else self.stage.name


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as Slurm writes them: ``0-2,5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def plan_arrays(shards: Sequence[int], total: int, cluster: SlurmCluster) -> list[Array]:
    """Arrays that prepare some shards within the cluster's limits.

    Above ``max_array_size`` there are several, which share the ``parallel`` tasks at a time; with
    fewer jobs allowed than there are shards, array tasks take turns of several shards. Where the
    cluster takes no arrays, each is a job that takes the turns of one array task.

    Args:
        shards: to prepare, ascending.
        total: shards of the run.
        cluster: for its limits.
    """
    single, size = not cluster.max_array_size, cluster.max_array_size or 1
    most = _MOST_SINGLES if single else total
    # The smallest limits leave room for nothing beside the single jobs: one task prepares all.
    allowed = max((cluster.max_submit or most + MAX_SINGLE_JOBS) - MAX_SINGLE_JOBS, 1)
    stride = total if len(shards) <= allowed else allowed
    starts = sorted({shard % stride for shard in shards}) if stride < total else list(shards)
    chunks: list[tuple[int, list[int]]] = []
    length = 0
    for start in starts:
        first = start // size * size
        index = start - first
        width = len(f",{index}")
        if not chunks or chunks[-1][0] != first or length + width > _LONGEST_RANGES:
            chunks.append((first, []))
            length = 0
        indices = chunks[-1][1]
        # A number within a range lengthens nothing; beside one it stands behind a dash.
        length += 0 if indices[-2:] == [index - 2, index - 1] else width
        indices.append(index)
    # With fewer tasks at a time than arrays, some wait for others.
    lanes = min(cluster.parallel, len(chunks))
    share, more = divmod(cluster.parallel, lanes) if lanes else (0, 0)
    return [
        Array(
            indices,
            first,
            stride,
            throttle=share + (number % lanes < more),
            after=number - lanes if number >= lanes else None,
            single=single,
        )
        for number, (first, indices) in enumerate(chunks)
    ]


def jobs_of(stage: RunStage, missing: Sequence[int], cluster: SlurmCluster) -> list[JobSpec]:
    """The jobs of a stage for its missing tasks.

    Raises:
        RequestError: the ranks do not spread evenly over nodes.
    """
    per_node = cluster.gpus_per_node
    if stage.kind.array:
        arrays = plan_arrays(missing, stage.tasks, cluster)
        gpus = min(1, per_node) if stage.kind.gpus else 0
        return [JobSpec(stage, gpus=gpus, array=array, part=n) for n, array in enumerate(arrays)]
    if not stage.kind.gpus:
        return [JobSpec(stage)]
    if not per_node or stage.ranks <= per_node:
        return [JobSpec(stage, gpus=min(stage.ranks, per_node), processes=stage.ranks)]
    if stage.ranks % per_node:
        raise RequestError(
            f"{stage.kind.ranks}={stage.ranks} does not spread over nodes of {per_node} GPUs; use "
            f"a multiple of {per_node}, or set cluster.gpus_per_node"
        )
    nodes = stage.ranks // per_node
    return [JobSpec(stage, nodes=nodes, gpus=per_node, processes=per_node)]


def job_name(run: RunFolder, stage: str, run_id: str) -> str:
    """Name of a stage's jobs in the queue, by which any login node finds them."""
    return f"{stage}.{run.name}.{run_id}"


def array_comment(array: Array) -> str:
    """Says in the queue which shards array tasks prepare; see :func:`read_array_comment`."""
    return f"shards {array.first} {array.stride}"


def read_array_comment(comment: str) -> tuple[int, int] | None:
    """First shard and stride of an array in the queue; None where the comment says neither."""
    found = re.search(r"(?:^| )shards (\d+) (\d+)$", comment)
    return (int(found[1]), int(found[2])) if found else None


def turns(first: int, stride: int, index: int, total: int) -> range:
    """Tasks of its stage, of ``total`` in all, that an array task works on.

    Args:
        first, stride: of the array, see :class:`Array`.
        index: of the array task.
        total: tasks of the stage.
    """
    return range(first + index, total, stride)


def tasks_of(job: SlurmJob, total: int) -> range:
    """Tasks of its stage that a job in the queue works on, of ``total`` in all."""
    array = read_array_comment(job.comment)
    if array is None:
        return range(job.index, job.index + 1)
    return turns(*array, job.index, total)
