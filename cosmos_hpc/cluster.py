"""Cluster profiles: where a recipe runs."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from cosmos_hpc.config import Section, apply_overrides, load_mapping, nearest, validate
from cosmos_hpc.errors import RequestError

#: Overrides that begin with this are for the cluster, the others for the recipe.
OVERRIDE_PREFIX = "cluster."


#: Types of GPU by their usual names, and their memory in GB as sold; what is usable differs by a
#: few per cent, most have more.
GPU_GIGABYTES = {"A100-40": 40, "A100-80": 80, "H100-80": 80, "H200-141": 141, "B200-192": 192}
#: GPUs of a node, where nothing else is said.
NODE_GPUS = 8
#: Where nothing is known, what the guide of the models assumes.
UNKNOWN_GPU = "H100-80"


def _known_gpu(gpu: str | float) -> str | float:
    """A type, or a number of GB, also as text."""
    if gpu in GPU_GIGABYTES:
        return gpu
    try:
        gigabytes = float(str(gpu).upper().removesuffix("GB"))
    except ValueError:
        hint = nearest(str(gpu).upper(), GPU_GIGABYTES)
        known = hint.rstrip("?") or f"; there are {', '.join(GPU_GIGABYTES)}"
        raise ValueError(f"unknown GPU {gpu!r}{known}, or give its memory in GB") from None
    if not 0 < gigabytes < math.inf:
        raise ValueError(f"a GPU has more than 0 GB of memory, and not {gpu}")
    return gigabytes


#: A type of GPU or its memory in GB.
Gpu = Annotated[str | float, AfterValidator(_known_gpu)]


class Cluster(Section):
    """A place to run.

    Attributes:
        name: of the profile; follows from the file.
        kind: ``local`` runs on this machine, in processes, while ``submit`` waits.
        runs: folder for run folders, on a file system that all workers share.
        parallel: array tasks at the same time.
        gpus: GPUs of this machine that tasks may use.
        gpu: their type, one of :data:`GPU_GIGABYTES`, or their memory in GB. Named on a machine
            without GPUs, it stands for a node of eight, to plan for.
    """

    name: str
    kind: Literal["local"]
    runs: str = "runs"
    parallel: PositiveInt
    gpus: NonNegativeInt
    gpu: Gpu = UNKNOWN_GPU

    @property
    def gpu_bytes(self) -> float:
        """Memory of one GPU."""
        gigabytes = GPU_GIGABYTES[self.gpu] if isinstance(self.gpu, str) else self.gpu
        return gigabytes * 1e9

    @model_validator(mode="after")
    def _a_gpu_for_every_task(self) -> Cluster:
        if self.gpus and self.parallel > self.gpus:
            raise ValueError(
                f"parallel={self.parallel} array tasks need as many GPUs, and gpus={self.gpus}"
            )
        return self


def visible_gpus() -> list[str]:
    """This machine's GPUs as CUDA_VISIBLE_DEVICES names them, of which it may leave out some."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def gpu_type(described: str) -> str | float:
    """A GPU from a line ``name, memory in MiB`` of ``nvidia-smi``: its type, or its GB."""
    name, _, mebibytes = described.rpartition(",")
    gigabytes = float(mebibytes) * 2**20 / 1e9
    for known, nominal in GPU_GIGABYTES.items():
        if known.partition("-")[0] in name and abs(gigabytes / nominal - 1) < 0.1:
            return known
    return round(gigabytes, 1)


def _this_gpu() -> str | float:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return gpu_type(done.stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return UNKNOWN_GPU


def _this_machine() -> dict[str, object]:
    """The built-in profile: all GPUs, or all cores where there is none."""
    gpus = len(visible_gpus())
    cores = len(os.sched_getaffinity(0))
    profile: dict[str, object] = {"kind": "local", "gpus": gpus, "parallel": gpus or max(2, cores)}
    if gpus:
        profile["gpu"] = _this_gpu()
    return profile


def profile_folders() -> list[Path]:
    """Where profiles are searched: the working folder, then the user's configuration."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [Path("clusters"), config / "cosmos-hpc" / "clusters"]


def cluster_names() -> list[str]:
    """Names of all profiles that can be found, and the built-in one."""
    return sorted({"local"} | {p.stem for f in profile_folders() for p in f.glob("*.yaml")})


def load_cluster(name: str = "local", overrides: Iterable[str] = ()) -> Cluster:
    """A cluster profile by name, or by path when it ends in ``.yaml``.

    A profile of kind ``local`` says only what differs from this machine's own numbers.

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
    data = {**_this_machine(), **(load_mapping(path) if path else {})}
    data["name"] = path.stem if path else name
    data = apply_overrides(data, overrides, Cluster)
    if not data["gpus"] and data.get("gpu"):
        # Somebody on a login node asks what a node of such GPUs would do.
        data.update(gpus=NODE_GPUS, parallel=min(int(data["parallel"]), NODE_GPUS))
    return validate(Cluster, data, f"cluster {data['name']}")
