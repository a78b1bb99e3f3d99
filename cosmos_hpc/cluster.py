"""Cluster profiles: where a recipe runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

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


def _this_machine() -> dict[str, object]:
    """The built-in profile: all GPUs, or all cores where there is none."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
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
    path = next((p for p in candidates if p.is_file()), None)
    if path is None and name != "local":
        hint = (
            nearest(name, cluster_names()) or f"; looked for {' and '.join(map(str, candidates))}"
        )
        raise RequestError(f"unknown cluster {name!r}{hint}")
    data = {**_this_machine(), **(load_mapping(path) if path else {})}
    data["name"] = path.stem if path else name
    data = apply_overrides(data, overrides, Cluster)
    return validate(Cluster, data, f"cluster {data['name']}")
