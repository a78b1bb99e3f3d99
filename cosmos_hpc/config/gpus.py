"""Types of GPU, and those of this machine."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cosmos_hpc.utils.annotations import Checked, InWords
from cosmos_hpc.utils.settings import nearest

#: Types of GPU by their usual names, and their memory in GB as sold.
GPU_GIGABYTES = {"A100-40": 40, "A100-80": 80, "H100-80": 80, "H200-141": 141, "B200-192": 192}
#: What PyTorch finds on them, in GB: measured on H100 and H200, of the others from its messages.
_FOUND = {"A100-40": 42.3, "A100-80": 84.9, "H100-80": 85.0, "H200-141": 150.1, "B200-192": 191.5}
#: GPUs of a node, where nothing else is said.
NODE_GPUS = 8
#: Where nothing is known, what the guide of the models assumes.
UNKNOWN_GPU = "H100-80"


def known_gpu(gpu: str | float | None) -> str | float:
    """A type, or a number of GB, also as text.

    Raises:
        ValueError: it is neither.
    """
    if gpu is None:
        raise ValueError(
            f"say what GPUs there are: {', '.join(GPU_GIGABYTES)}, or their memory, such as 48GB"
        )
    if str(gpu).upper() in GPU_GIGABYTES:
        return str(gpu).upper()
    try:
        gigabytes = float(str(gpu).upper().removesuffix("GB"))
    except ValueError:
        hint = nearest(str(gpu).upper(), GPU_GIGABYTES)
        known = hint.rstrip("?") or f"; there are {', '.join(GPU_GIGABYTES)}"
        raise ValueError(f"unknown GPU {gpu!r}{known}, or give its memory in GB") from None
    if not 0 < gigabytes < math.inf:
        raise ValueError(f"a GPU has more than 0 GB of memory, and not {gpu}")
    return gigabytes


if TYPE_CHECKING:
    Gpu = str | float
else:
    #: A type of GPU or its memory in GB. None is what a profile says that leaves it to a person.
    Gpu = Annotated[
        str | float | None,
        Checked(known_gpu),
        InWords(f"{', '.join(f'`{name}`' for name in GPU_GIGABYTES)}, or a number of GB"),
    ]


def gpu_bytes(gpu: str | float) -> float:
    """Memory of a GPU, as PyTorch finds it on those of a known type."""
    return (_FOUND[gpu] if isinstance(gpu, str) else gpu) * 1e9


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


def this_gpu() -> str | float:
    """Type or GB of this machine's first GPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return gpu_type(done.stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return UNKNOWN_GPU
