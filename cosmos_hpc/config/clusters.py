"""Cluster profiles: where a recipe runs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from cosmos_hpc.config.gpus import NODE_GPUS, UNKNOWN_GPU, Gpu, gpu_bytes, this_gpu, visible_gpus
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.settings import (
    PathText,
    Section,
    apply_overrides,
    load_mapping,
    nearest,
    validate,
)

#: Overrides that begin with this are for the cluster, the others for the recipe.
OVERRIDE_PREFIX = "cluster."


class Cluster(Section):
    """A place to run.

    Attributes:
        name: of the profile; follows from the file.
        runs: folder for run folders, on a file system that all workers share.
        parallel: array tasks at the same time.
        gpu: type of the GPUs, one of :data:`cosmos_hpc.config.gpus.GPU_GIGABYTES`, or their memory in GB.
            Named on a machine without GPUs, it stands for a node of eight, to plan for.
    """

    name: str
    runs: PathText = "runs"
    parallel: PositiveInt
    gpu: Gpu = UNKNOWN_GPU

    @property
    def max_gpus(self) -> int:
        """GPUs that a training may use; 0 without any."""
        raise NotImplementedError

    @property
    def node_gpus(self) -> int:
        """GPUs of one node, which are linked fast enough for tensor parallelism."""
        raise NotImplementedError

    @property
    def gpu_bytes(self) -> float:
        """Memory of one GPU."""
        return gpu_bytes(self.gpu)


class MachineCluster(Cluster):
    """This machine alone: ``submit`` runs everything on it, and waits.

    Attributes:
        gpus: GPUs of this machine that tasks may use.
    """

    gpus: NonNegativeInt

    @property
    def max_gpus(self) -> int:
        """All of them."""
        return self.gpus

    @property
    def node_gpus(self) -> int:
        """Those of this machine, or of the usual node: what would do is sought beyond it."""
        return max(self.gpus, NODE_GPUS)

    @model_validator(mode="after")
    def _a_gpu_for_every_task(self) -> MachineCluster:
        if self.gpus and self.parallel > self.gpus:
            raise ValueError(
                f"parallel={self.parallel} array tasks need as many GPUs, and gpus={self.gpus}"
            )
        return self


class LocalCluster(MachineCluster):
    """This machine, in processes."""

    kind: Literal["local"]


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


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(
            f"{name.partition('=')[0]!r} is not the name of an environment variable; give names "
            f"only, their values are taken from where submit runs"
        )
    return name


def _mount(text: str) -> str:
    parts = text.split(":")
    absolute = all(part.startswith("/") for part in parts[:2])
    if len(parts) > 3 or not all(parts) or not absolute or "," in text:
        raise ValueError(f"{text!r} is not a mount; write /from:/to or /from:/to:ro, no commas")
    return text


#: Flags of sbatch on which finding jobs in the queue, and what they do, depends.
_OWN_FLAGS = {
    *("array", "chdir", "clusters", "dependency", "export", "export-file", "job-name"),
    *("kill-on-invalid-dep", "no-requeue", "open-mode", "output", "parsable", "signal"),
    *("wait", "wrap"),
}


def _flag(text: str) -> str:
    if not re.fullmatch(r"--[a-z][a-z0-9-]*(=.*)?", text) or "\n" in text:
        raise ValueError(f"{text!r} is not a long flag of sbatch, such as --mem=0")
    name = text.removeprefix("--").partition("=")[0]
    if name in _OWN_FLAGS:
        raise ValueError(f"--{name} is set by the scripts themselves; leave it out")
    return text


def _line(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise ValueError(f"{text!r} is more than a line; write one item a line")
    return text


Walltime = Annotated[str, AfterValidator(_walltime)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,@+-]*$")]


#: Jobs of a run beside those of the array.
MAX_SINGLE_JOBS = 3

#: Variables that the stages read.
PASSED_ON = ["HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "WANDB_API_KEY", "WANDB_MODE"]


class TimeLimits(Section):
    """Time limits of the stages' jobs, ``HH:MM:SS`` or ``D-HH:MM:SS``."""

    download: Walltime = "02:00:00"
    preprocess: Walltime = "04:00:00"
    finalize: Walltime = "02:00:00"
    train: Walltime = "04:00:00"


class SlurmCluster(Cluster):
    """A cluster with Slurm.

    Attributes:
        account, qos: what jobs are charged to, and their quality of service; None: the defaults.
        gpu_partition, cpu_partition: for stages with GPUs, and those without.
        gpus_per_node: GPUs of a node; 0 where there are none.
        cpus_per_gpu: CPUs that a job gets with each GPU; None: Slurm's default.
        gres: how the cluster names a GPU in ``--gres``, for example ``gpu:h100``.
        nodes: most nodes of one job.
        time: limits of the stages' jobs.
        grace_seconds: how long before its time limit a job is asked to stop at a safe point and
            queue itself again.
        requeues: how often a job may be started again, by itself or by Slurm.
        retries: how often a task that was killed without leaving a reason is tried again.
        max_array_size: the cluster's MaxArraySize; larger arrays are split.
        max_submit: jobs that you may have in the queue, array tasks counted one by one; where
            fewer are left than there are shards, an array task prepares several. None: no limit.
        container: image, a local file or a registry's name; None: the host's Python.
        container_runtime: what runs it, ``pyxis`` or ``apptainer``.
        mounts: folders inside the container, ``/from:/to``.
        python: runs the workers; ``python3`` in a container, else the one that submits.
        setup: shell lines before the work, for module systems.
        environment: names of variables to pass on; never values.
        sbatch: further flags.
    """

    kind: Literal["slurm"]
    account: Name | None = None
    qos: Name | None = None
    gpu_partition: Name
    cpu_partition: Name
    gpus_per_node: NonNegativeInt = NODE_GPUS
    cpus_per_gpu: PositiveInt | None = None
    gres: Annotated[str, Field(pattern=r"^gpu(:[A-Za-z0-9_.-]+)?$")] = "gpu"
    nodes: PositiveInt = 1
    time: TimeLimits = TimeLimits()
    grace_seconds: PositiveInt = 300
    requeues: NonNegativeInt = 20
    retries: NonNegativeInt = 2
    max_array_size: PositiveInt = 1001
    max_submit: Annotated[int, Field(gt=MAX_SINGLE_JOBS)] | None = None
    container: Annotated[str, Field(min_length=1), AfterValidator(_line)] | None = None
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    mounts: list[Annotated[str, AfterValidator(_mount)]] = Field(default=[])
    python: Annotated[str, Field(min_length=1), AfterValidator(_line)] = sys.executable
    setup: list[Annotated[str, AfterValidator(_line)]] = Field(default=[])
    environment: list[Annotated[str, AfterValidator(_variable)]] = Field(default=PASSED_ON)
    sbatch: list[Annotated[str, AfterValidator(_flag)]] = Field(default=[])

    @property
    def max_gpus(self) -> int:
        """Of all nodes that a job may have."""
        return self.nodes * self.gpus_per_node

    @property
    def node_gpus(self) -> int:
        """As the profile says."""
        return self.gpus_per_node or NODE_GPUS

    @model_validator(mode="after")
    def _time_for_grace(self) -> SlurmCluster:
        for stage, walltime in self.time.model_dump().items():
            # Slurm may send the signal a minute early.
            if minutes(walltime) * 60 <= self.grace_seconds + 60:
                raise ValueError(
                    f"time.{stage}={walltime} leaves no time to work before a job is asked to "
                    f"stop, grace_seconds={self.grace_seconds} and up to a minute before the end"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _which_python(cls, data: dict[str, Any]) -> dict[str, Any]:
        default = "python3" if data.get("container") else sys.executable
        return {**data, "python": data.get("python") or default}

    @model_validator(mode="after")
    def _mounts_need_a_container(self) -> SlurmCluster:
        if self.mounts and self.container is None:
            raise ValueError("mounts are for a container, and container is not set")
        return self


class DockerCluster(MachineCluster):
    """This machine, in containers of its Docker engine.

    Attributes:
        image: name or id of an image that the engine has; it needs bash and a Python with the
            libraries of the worker.
        python: that Python.
        mounts: folders beside the run's own and what its recipe names, ``/from:/to`` or
            ``/from:/to:ro``.
        shm_size: limit of the memory that processes of a container share, such as ``8g``.
        environment: names of variables to pass on; never values.
    """

    kind: Literal["docker"]
    image: Annotated[str, Field(min_length=1), AfterValidator(_line)]
    python: Annotated[str, Field(min_length=1), AfterValidator(_line)] = "python3"
    mounts: list[Annotated[str, AfterValidator(_mount)]] = Field(default=[])
    shm_size: Annotated[str, Field(pattern=r"^[1-9][0-9]*[kmg]?$")] = "8g"
    environment: list[Annotated[str, AfterValidator(_variable)]] = Field(
        default=[*PASSED_ON, "HF_HUB_OFFLINE", "WANDB_MODE"]
    )


_KINDS: dict[str, type[Cluster]] = {
    "local": LocalCluster,
    "docker": DockerCluster,
    "slurm": SlurmCluster,
}


def _this_machine() -> dict[str, object]:
    """The built-in profile: all GPUs, or all cores where there is none."""
    gpus = len(visible_gpus())
    cores = len(os.sched_getaffinity(0))
    profile: dict[str, object] = {"kind": "local", "gpus": gpus, "parallel": gpus or max(2, cores)}
    if gpus:
        profile["gpu"] = this_gpu()
    return profile


def profile_folders() -> list[Path]:
    """Where profiles are searched: the working folder, then the user's configuration."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [Path("clusters"), config / "cosmos-hpc" / "clusters"]


def cluster_names() -> list[str]:
    """Names of all profiles that can be found, and the built-in one."""
    return sorted({"local"} | {p.stem for f in profile_folders() for p in f.glob("*.yaml")})


def read_cluster(path: Path) -> Cluster:
    """The resolved profile that a run was submitted with."""
    data = load_mapping(path)
    return validate(_KINDS[str(data["kind"])], data, str(path))


def load_cluster(name: str = "local", overrides: Iterable[str] = ()) -> Cluster:
    """A cluster profile by name, or by path when it ends in ``.yaml``.

    A profile of kind ``local`` or ``docker`` says only what differs from this machine's numbers.

    Raises:
        RequestError: no such profile, an unknown key or a wrong type.
    """
    candidates = [f / f"{name}.yaml" for f in profile_folders()]
    if name.endswith((".yaml", ".yml")):
        candidates = [Path(name)]
    # os.path's answer is no, not an error, where a folder on the way may not be read.
    path = next((p for p in candidates if os.path.isfile(p)), None)  # noqa: PTH113
    if path is None and name != "local":
        hint = (
            nearest(name, cluster_names()) or f"; looked for {' and '.join(map(str, candidates))}"
        )
        raise RequestError(f"unknown cluster {name!r}{hint}")
    data: dict[str, Any] = load_mapping(path) if path else {"kind": "local"}
    data["name"] = path.stem if path else name
    kind = data.get("kind", "local")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise RequestError(f"cluster {data['name']}: kind={kind!r}: there are {', '.join(_KINDS)}")
    schema = _KINDS[kind]
    if issubclass(schema, MachineCluster):
        data = {**_this_machine(), **data}
    data = apply_overrides(data, overrides, schema)
    if issubclass(schema, MachineCluster) and not data["gpus"] and data.get("gpu"):
        # Somebody on a login node asks what a node of such GPUs would do.
        data["gpus"] = NODE_GPUS
        if isinstance(data["parallel"], int):
            data["parallel"] = min(data["parallel"], NODE_GPUS)
    return validate(schema, data, f"cluster {data['name']}")
