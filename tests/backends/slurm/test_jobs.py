"""Arrays within a cluster's limits: every shard once, never too many tasks at a time."""

import random

import pytest

from cosmos_hpc.backends.slurm.jobs import jobs_of, plan_arrays, ranges, turns
from cosmos_hpc.backends.slurm.profile import MAX_SINGLE_JOBS, SlurmCluster
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.stages import STAGES, RunStage
from cosmos_hpc.utils.settings import validate

PROFILE = {"name": "x", "kind": "slurm", "gpu_partition": "gpu", "cpu_partition": "cpu"}


def cluster(**settings):
    return validate(SlurmCluster, {**PROFILE, "parallel": 16, **settings}, "x")


def expand(spec):
    """Indices of ``--array``, as Slurm reads them."""
    found = []
    for part in spec.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_every_shard_has_one_task_and_limits_are_kept(seed):
    chance = random.Random(seed)
    total = chance.randrange(1, 3000)
    missing = sorted(chance.sample(range(total), chance.randrange(1, total + 1)))
    where = cluster(
        parallel=chance.randrange(1, 70),
        max_array_size=chance.choice([0, 10, 101, 1001]),
        max_submit=chance.choice([None, len(STAGES), 50, 1000]),
    )
    arrays = plan_arrays(missing, total, where)
    prepared = []
    for array in arrays:
        indices = expand(array.spec)
        assert indices == list(array.indices)
        # Where there are no arrays, each is a job of its own.
        assert indices[-1] < (where.max_array_size or 1)
        assert array.single == (not where.max_array_size)
        for index in indices:
            prepared += turns(array.first, array.stride, index, total)
    assert len(prepared) == len(set(prepared))
    assert set(missing) <= set(prepared)
    if where.max_submit:
        # With the jobs of the other stages.
        submitted = sum(len(array.indices) for array in arrays)
        assert submitted + MAX_SINGLE_JOBS <= where.max_submit
    elif where.max_array_size or len(missing) <= 500:
        assert sorted(prepared) == missing
    else:
        assert len(arrays) <= 500 and {array.stride for array in arrays} == {500}
    at_once = sum(array.throttle for array in arrays if array.after is None)
    assert at_once <= where.parallel
    for number, array in enumerate(arrays):
        if array.after is not None:
            assert array.after < number
            assert array.throttle <= arrays[array.after].throttle


def test_scattered_shards_keep_to_what_slurm_takes_for_an_array():
    """4096 characters; all of many in a row are one array all the same."""
    missing = list(range(0, 9000, 2))
    arrays = plan_arrays(missing, 9000, cluster(max_array_size=10001))
    assert len(arrays) > 1
    assert all(len(array.spec) < 4096 for array in arrays)
    assert [array.first + i for array in arrays for i in array.indices] == missing
    assert len(plan_arrays(range(9000), 9000, cluster(max_array_size=10001))) == 1


def test_ranges_are_what_slurm_writes():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([4]) == "4"


def test_nodes_of_a_training():
    train = RunStage(STAGES["train"], ranks=16)
    (job,) = jobs_of(train, [0], cluster(nodes=2))
    assert (job.nodes, job.gpus, job.processes) == (2, 8, 8)
    (job,) = jobs_of(RunStage(STAGES["train"], ranks=4), [0], cluster())
    assert (job.nodes, job.gpus, job.processes) == (1, 4, 4)
    (job,) = jobs_of(RunStage(STAGES["train"], ranks=4), [0], cluster(gpus_per_node=0))
    assert (job.nodes, job.gpus, job.processes) == (1, 0, 4)
    with pytest.raises(RequestError, match=r"train.gpus=12 does not spread over nodes of 8"):
        jobs_of(RunStage(STAGES["train"], ranks=12), [0], cluster(nodes=2))


def test_stages_without_gpus_ask_for_none():
    where = cluster()
    for name in ("download", "finalize"):
        assert [job.gpus for job in jobs_of(RunStage(STAGES[name]), [0], where)] == [0]
    assert [
        job.gpus for job in jobs_of(RunStage(STAGES["preprocess"], tasks=3), range(3), where)
    ] == [1]
