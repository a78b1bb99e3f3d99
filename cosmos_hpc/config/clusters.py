"""Cluster profiles: where they are searched, and what those of all kinds say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from cosmos_hpc.config.gpus import NODE_GPUS, UNKNOWN_GPU, Gpu, gpu_bytes
from cosmos_hpc.config.synonyms import CLUSTER_SYNONYMS
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.annotations import Checked, InWords, PositiveInt
from cosmos_hpc.utils.mappings import load_mapping
from cosmos_hpc.utils.settings import PathText, Section, Synonym, nearest

#: Overrides that begin with this are for the cluster, the others for the recipe.
OVERRIDE_PREFIX = "cluster."
#: The profile that is always there, and the kind of profiles that name none.
BUILT_IN = "local"


class Cluster(Section, frozen=True, kw_only=True):
    """A place to run.

    Attributes:
        name: name of the profile, which follows from that of its file.
        runs: folder that holds the run folders, on a file system that all workers share.
        parallel: array tasks that run at the same time.
        check_disk: refuse a run that the disk of ``runs`` has no room for; set it to false where
            the file system does not tell the true free space, as with quotas, or where data moves
            away.
        gpu: type of the GPUs, one of :data:`~cosmos_hpc.config.gpus.GPU_GIGABYTES`, or their memory
            in GB. Named on a machine without GPUs, it stands for a node of eight, to plan for.
        kind: what runs the stages; which other settings a profile has depends on it.
    """

    synonyms: ClassVar[Mapping[str, Synonym]] = CLUSTER_SYNONYMS
    default_words: ClassVar[Mapping[str, str]] = {"name": "follows from the file"}

    name: str
    runs: PathText = "runs"
    parallel: PositiveInt
    check_disk: bool = True
    gpu: Gpu = UNKNOWN_GPU

    kind: str
    #: Whether a training may take all GPUs, because no one else waits for them.
    takes_all_gpus: ClassVar[bool] = False

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What a profile of this kind need not say, because this machine does."""
        return {}

    @classmethod
    def completed(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A profile's plain data, overrides included, with what follows from it."""
        return data

    @property
    def max_gpus(self) -> int:
        """GPUs that a training may use; 0 without any."""
        return 0

    @property
    def node_gpus(self) -> int:
        """GPUs of one node, which are linked fast enough for tensor parallelism."""
        return NODE_GPUS

    def time_of(self, stage: str) -> str | None:
        """The time limit of a stage's jobs; None without limits."""
        return None

    @property
    def gpu_bytes(self) -> float:
        """Memory of one GPU."""
        return gpu_bytes(self.gpu)


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


def _line(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise ValueError(f"{text!r} is more than a line; write one item per line")
    return text


#: A line of text.
Line = Annotated[str, Meta(min_length=1), Checked(_line), InWords("line of text")]
#: A line that may be empty.
AnyLine = Annotated[str, Checked(_line), InWords("line of text")]
#: The name of an environment variable.
Variable = Annotated[str, Checked(_variable), InWords("name of an environment variable")]
#: ``/from:/to`` or ``/from:/to:ro``.
MountText = Annotated[str, Checked(_mount), InWords("`/from:/to` or `/from:/to:ro`")]

#: Defaults of profiles that are for one machine, in words: they follow from it.
MACHINE_DEFAULTS = {
    **Cluster.default_words,
    "gpus": "all of this machine",
    "parallel": "as many as GPUs; without any, as cores, and at least 2",
    "gpu": f"that of this machine; without any, {UNKNOWN_GPU}",
}

#: Variables that the stages read.
PASSED_ON = ["HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "WANDB_API_KEY", "WANDB_MODE"]


def profile_folders() -> list[Path]:
    """Where profiles are searched: the working folder, then the user's configuration."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [Path("clusters"), config / "cosmos-hpc" / "clusters"]


def cluster_names() -> list[str]:
    """Names of all profiles that can be found, and the built-in one."""
    return sorted({BUILT_IN} | {p.stem for f in profile_folders() for p in f.glob("*.yaml")})


def find_profile(name: str, kind: str | None = None) -> dict[str, Any]:
    """A profile as plain data with its ``name``, by name, or by path when it ends in ``.yaml``.

    Args:
        name: see above.
        kind: that is wanted instead of the profile's own. A built-in profile of another kind is
            named after that; what else the kind needs, overrides have to say.

    Raises:
        RequestError: there is no such profile, or it is not a mapping in YAML.
    """
    candidates = [f / f"{name}.yaml" for f in profile_folders()]
    if name.endswith((".yaml", ".yml")):
        candidates = [Path(name)]
    # os.path's answer is no, not an error, where a folder on the way may not be read.
    path = next((p for p in candidates if os.path.isfile(p)), None)  # noqa: PTH113
    if path is None and name != BUILT_IN:
        hint = (
            nearest(name, cluster_names()) or f"; looked for {' and '.join(map(str, candidates))}"
        )
        raise RequestError(f"unknown cluster {name!r}{hint}")
    data = {"kind": BUILT_IN, **(load_mapping(path) if path else {})}
    if kind:
        data["kind"] = kind
    return {**data, "name": path.stem if path else str(data["kind"])}
