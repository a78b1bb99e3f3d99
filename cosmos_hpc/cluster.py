"""Cluster profiles: where a recipe runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from cosmos_hpc.config import Section, apply_overrides, load_mapping, nearest, validate
from cosmos_hpc.errors import RequestError

#: Overrides that begin with this are for the cluster, the others for the recipe.
OVERRIDE_PREFIX = "cluster."


class Cluster(Section):
    """A place to run.

    Attributes:
        name: of the profile; follows from the file.
        kind: ``local`` runs on this machine, in processes, while ``submit`` waits.
        runs: folder for run folders, on a file system that all workers share.
        parallel: array tasks at the same time.
        gpus: GPUs of this machine that tasks may use.
    """

    name: str
    kind: Literal["local"]
    runs: str = "runs"
    parallel: PositiveInt
    gpus: NonNegativeInt

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


def _this_machine() -> dict[str, object]:
    """The built-in profile: all GPUs, or all cores where there is none."""
    gpus = len(visible_gpus())
    cores = len(os.sched_getaffinity(0))
    return {"kind": "local", "gpus": gpus, "parallel": gpus or max(2, cores)}


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
    return validate(Cluster, data, f"cluster {data['name']}")
