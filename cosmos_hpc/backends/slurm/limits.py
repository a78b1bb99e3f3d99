"""Whether jobs of a run are within what the cluster gives: their number, and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from cosmos_hpc.backends.slurm import commands
from cosmos_hpc.backends.slurm.jobs import JobSpec
from cosmos_hpc.backends.slurm.profile import MAX_SINGLE_JOBS, SlurmCluster
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.stages import RunStage
from cosmos_hpc.utils.progress import count_of, gigabytes

#: Jobs that a limit must have room for, for each stage that looks back on a run.
_CROWDED = 4
#: Bytes that a rank takes beside checkpoints: its libraries, and workers that load data. Assumed.
_RANK_BYTES = 8e9


def rooms_of(
    cluster: SlurmCluster,
    stages: list[RunStage],
    missing: Mapping[str, Sequence[int]],
    spare: int,
    there: int,
) -> dict[str, SlurmCluster]:
    """How the limit of jobs is shared among some stages of a run.

    Arrays that need little get that, and the others share the rest evenly. Where the limit is so
    small that stages which look back on the run would take much of it from the others, they get
    nothing.

    Args:
        cluster: the profile with the limit, of which jobs that are in the queue take a part.
        stages: that have tasks to submit.
        missing: these tasks, by stage.
        spare: jobs to leave room for besides, up to half of what is left.
        there: jobs of this user in the queue, where there is a limit.

    Returns:
        By name of the stage, the profile with the limit that holds for it; without the stages that
        get nothing.
    """
    if cluster.max_submit is None:
        return {stage.name: cluster for stage in stages}
    left = cluster.max_submit - there
    looking = [stage for stage in stages if stage.kind.looks_back]
    if len(looking) < len(stages) and left < _CROWDED * len(looking):
        stages = [stage for stage in stages if not stage.kind.looks_back]
    arrays = sorted(
        (stage.name for stage in stages if stage.kind.array), key=lambda name: len(missing[name])
    )
    left -= len(stages) - len(arrays)
    left -= min(spare, left // 2)
    rooms = {stage.name: cluster for stage in stages}
    for number, name in enumerate(arrays):
        # One array task at least: what Slurm then does not take, it refuses completely.
        share = max(min(left // (len(arrays) - number), len(missing[name])), 1)
        left -= share
        rooms[name] = replace(cluster, max_submit=share + MAX_SINGLE_JOBS)
    return rooms


def check_room(cluster: SlurmCluster, jobs: Sequence[JobSpec], stuck: int) -> None:
    """Refuse more jobs than the limit leaves room for, before Slurm does so halfway.

    Args:
        cluster: the profile.
        jobs: to be submitted.
        stuck: jobs in the queue that these replace.

    Raises:
        RequestError: says how many there are.
    """
    if cluster.max_submit is None:
        return
    needed = sum(len(job.array.indices) if job.array else 1 for job in jobs)
    there = commands.mine() - stuck
    if there + needed > cluster.max_submit:
        raise RequestError(
            f"you have {count_of(there, 'job')} in the queue, and max_submit={cluster.max_submit} "
            f"leaves no room for {needed} more; submit again when some have ended. No job of "
            f"this run was submitted"
        )


def check_memory(cluster: SlurmCluster, job: JobSpec, job_id: str, needed: int) -> None:
    """Refuse a training in the queue that its first checkpoint would end, perhaps hours later.

    Args:
        cluster: the profile.
        job: of the training.
        job_id: in the queue.
        needed: bytes of memory of all its nodes together.

    Raises:
        RequestError: Slurm gives it less.
    """
    # Of a node that a job has alone, Slurm shows the memory of the CPUs that were asked for.
    unknown = not cluster.check_memory or "--exclusive" in cluster.sbatch
    there = None if unknown else commands.memory_of(job_id)
    if there is None or there >= needed:
        return
    ranks = job.nodes * max(job.gpus, 1)
    enough = math.ceil((needed / ranks + _RANK_BYTES) / 2**30)
    raise RequestError(
        f"Slurm gives the job of stage {job.stage.name} {gigabytes(there)} of memory, and writing "
        f"a checkpoint takes {gigabytes(needed)}, on all its nodes together; set "
        f"cluster.mem_per_gpu={enough}G, or cluster.check_memory=false where jobs are not held to "
        f"it. Nothing was submitted"
    )
