"""Profiles of Slurm clusters."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import Meta, defstruct, field

from cosmos_hpc.config.clusters import (
    PASSED_ON,
    AnyLine,
    Cluster,
    Line,
    MountText,
    Variable,
)
from cosmos_hpc.config.gpus import NODE_GPUS
from cosmos_hpc.runs.stages import STAGES
from cosmos_hpc.utils.annotations import Checked, InWords, NonNegativeInt, PositiveInt
from cosmos_hpc.utils.settings import Section, Synonym


def minutes(walltime: str) -> int:
    """Minutes of a Slurm time limit: ``MM``, ``HH:MM:SS`` or ``D-HH:MM:SS``; seconds round up.

    Raises:
        ValueError: it is none of these, or zero.
    """
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):(\d\d)|(\d+))", walltime)
    if not found:
        raise ValueError(f"{walltime!r} is not a time limit; write HH:MM:SS or D-HH:MM:SS")
    days, hours, mins, seconds, only = (int(part or 0) for part in found.groups())
    total = only or days * 1440 + hours * 60 + mins + (seconds > 0)
    if not total:
        raise ValueError(f"{walltime!r} is no time at all")
    return total


def _walltime(text: str) -> str:
    minutes(text)
    return text


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*[MGT]", text):
        raise ValueError(f"{text!r} is not an amount of memory, such as 60G")
    return text


#: Flags of sbatch on which finding jobs in the queue, and what they do, depends.
_OWN_FLAGS = {
    *("array", "chdir", "clusters", "dependency", "export", "export-file", "job-name"),
    *("kill-on-invalid-dep", "no-requeue", "open-mode", "output", "parsable", "signal"),
    *("wait", "wrap"),
}
_MEMORY_FLAGS = ("--mem", "--mem-per-cpu", "--mem-per-gpu")


def _flag(text: str) -> str:
    if not re.fullmatch(r"--[a-z][a-z0-9-]*(=.*)?", text) or "\n" in text:
        raise ValueError(f"{text!r} is not a long flag of sbatch, such as --mem=0")
    name = text.removeprefix("--").partition("=")[0]
    if name in _OWN_FLAGS:
        raise ValueError(f"--{name} is set by the scripts themselves; leave it out")
    return text


Walltime = Annotated[str, Checked(_walltime), InWords("time limit, `HH:MM:SS` or `D-HH:MM:SS`")]
MemoryText = Annotated[str, Checked(_memory), InWords("a number with M, G or T, such as `60G`")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,@+-]*\Z")]

#: Jobs of a run beside those of arrays.
MAX_SINGLE_JOBS = sum(not stage.array for stage in STAGES.values())
#: Jobs of a run at least: those that look back on it can be submitted when the others have ended.
LEAST_JOBS = sum(not stage.looks_back for stage in STAGES.values())

if TYPE_CHECKING:
    TimeLimits = Section
else:
    _OF_JOBS = "".join(f"    {name}: limit of a job of stage ``{name}``.\n" for name in STAGES)
    #: ``HH:MM:SS`` or ``D-HH:MM:SS``, one setting per stage.
    TimeLimits = defstruct(
        "TimeLimits",
        [(stage.name, Walltime, stage.time) for stage in STAGES.values()],
        bases=(Section,),
        namespace={"__doc__": f"Time limits of the stages' jobs.\n\nAttributes:\n{_OF_JOBS}"},
        kw_only=True,
    )


class SlurmCluster(Cluster, frozen=True, kw_only=True):
    """A cluster with Slurm.

    Attributes:
        account: account that jobs are charged to; None: your default one.
        qos: quality of service that jobs ask for; None: the default.
        gpu_partition: partition for stages with GPUs.
        cpu_partition: partition for stages without GPUs.
        gpus_per_node: GPUs of a node; 0 where there are none.
        cpus_per_gpu: CPUs that a job gets with each GPU; None: Slurm's default.
        mem_per_gpu: memory of the node that a job gets with each GPU; None: Slurm's default.
        check_memory: take back a training that Slurm gives less memory than writing a checkpoint
            takes; set it to false where the cluster does not hold jobs to it.
        gres: how the cluster names a GPU in ``--gres``, for example ``gpu:h100``.
        nodes: nodes that one job may have at most.
        time: time limits of the stages' jobs.
        grace_seconds: how long before its time limit a job is asked to stop at a safe point and
            queue itself again.
        requeues: how often a job may be started again, by itself or by Slurm.
        retries: how often a task that was killed without leaving a reason is tried again.
        max_array_size: the cluster's MaxArraySize; larger arrays are split. 0: it takes no arrays,
            and shards are prepared by jobs of their own.
        max_submit: jobs that you may have in the queue, array tasks counted one by one; where that
            is less than there are shards, an array task prepares several. None: no limit.
        container: image that jobs run in, a local file or a name in a registry; None: they run with
            the host's Python.
        container_runtime: what runs the container, ``pyxis`` or ``apptainer``.
        mounts: folders that the container sees, and where, as ``/from:/to``.
        python: the Python that runs the workers; ``python3`` in a container, else the one that
            submits.
        setup: shell lines that a job runs before its work, for example to load modules.
        environment: names of environment variables that are passed on to the work; never values.
        secrets: file of variables that only you may read, NAME=VALUE a line; the jobs read it by
            themselves. None: there is none.
        sbatch: further flags of sbatch, such as ``--mem=0``.
    """

    synonyms: ClassVar[Mapping[str, Synonym]] = {
        **Cluster.synonyms,
        "gpus": Synonym(("gpus_per_node",), "or train.gpus for those of a training"),
    }
    default_words: ClassVar[Mapping[str, str]] = {
        **Cluster.default_words,
        "cpu_partition": "``gpu_partition``",
        "python": "python3 in a container, else the Python that submits",
    }

    kind: Literal["slurm"]
    parallel: PositiveInt = 32
    account: Name | None = None
    qos: Name | None = None
    gpu_partition: Name
    cpu_partition: Name
    gpus_per_node: NonNegativeInt = NODE_GPUS
    cpus_per_gpu: PositiveInt | None = None
    mem_per_gpu: MemoryText | None = None
    check_memory: bool = True
    gres: Annotated[str, Meta(pattern=r"^gpu(:[A-Za-z0-9_.-]+)?\Z")] = "gpu"
    nodes: PositiveInt = 1
    time: TimeLimits = TimeLimits()
    grace_seconds: PositiveInt = 300
    requeues: NonNegativeInt = 20
    retries: NonNegativeInt = 2
    max_array_size: NonNegativeInt = 1001
    max_submit: Annotated[int, Meta(ge=LEAST_JOBS)] | None = None
    container: Line | None = None
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    mounts: list[MountText] = field(default_factory=list)
    python: Line = sys.executable
    setup: list[AnyLine] = field(default_factory=list)
    environment: list[Variable] = field(default_factory=PASSED_ON.copy)
    secrets: Line | None = None
    sbatch: list[Annotated[str, Checked(_flag)]] = field(default_factory=list)

    @classmethod
    def completed(cls, data: dict[str, Any]) -> dict[str, Any]:
        """With the Python of a container or of this process, and one partition for all jobs."""
        python = "python3" if data.get("container") else sys.executable
        follows = {"python": data.get("python") or python}
        if "cpu_partition" not in data and "gpu_partition" in data:
            follows["cpu_partition"] = data["gpu_partition"]
        return {**data, **follows}

    def time_of(self, stage: str) -> str:
        """The limit of a stage's jobs."""
        return str(getattr(self.time, stage))

    def memory(self, gpus: int) -> str | None:
        """What a job with this many GPUs of a node asks for there; None: Slurm's default."""
        if not gpus or self.mem_per_gpu is None:
            return None
        return f"{int(self.mem_per_gpu[:-1]) * gpus}{self.mem_per_gpu[-1]}"

    def partition(self, gpus: int) -> str:
        """The partition for a job with this many GPUs."""
        return self.gpu_partition if gpus else self.cpu_partition

    @property
    def max_gpus(self) -> int:
        """Of all nodes that a job may have."""
        return self.nodes * self.gpus_per_node

    @property
    def node_gpus(self) -> int:
        """As the profile says."""
        return self.gpus_per_node or NODE_GPUS

    def _fits_together(self) -> None:
        for stage, walltime in self.time.as_dict().items():
            # Slurm may send the signal a minute early.
            if minutes(walltime) * 60 <= self.grace_seconds + 60:
                raise ValueError(
                    f"time.{stage}={walltime} leaves no time to work before a job is asked to "
                    f"stop, grace_seconds={self.grace_seconds} and up to a minute before the end"
                )
        flags = [flag for flag in self.sbatch if flag.partition("=")[0] in _MEMORY_FLAGS]
        if self.mem_per_gpu and flags:
            raise ValueError(f"mem_per_gpu={self.mem_per_gpu} and {flags[0]} in sbatch; choose one")
        if self.mounts and self.container is None:
            raise ValueError("mounts are for a container, and container is not set")
