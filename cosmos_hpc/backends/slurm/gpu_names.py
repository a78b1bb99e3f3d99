"""What the names mean that Slurm clusters give their GPUs."""

from __future__ import annotations

import re

from cosmos_hpc.config.gpus import GPU_GIGABYTES

#: What NVML calls a part of a card: ``a100_1g.5gb``, with its memory in GB; sites write it as well
#: without the dot.
_SLICE = r"\d+g[._-]?(\d+)gb"


def is_slice(name: str) -> bool:
    """Whether a name is that of a part of a card (MIG)."""
    return re.search(_SLICE, name, re.IGNORECASE) is not None


def gpus_named(name: str) -> list[str]:
    """The GPUs that a name may mean, as profiles say them, the smallest first; none: not known.

    Args:
        name: the type in Slurm's ``gpu:TYPE:COUNT``.
    """
    words = re.split("[^A-Z0-9.]+", name.upper())
    fitting = [known for known in GPU_GIGABYTES if known.partition("-")[0] in words]
    named = [float(word.rstrip("GB")) for word in words if re.fullmatch(r"\d+GB?", word)]
    if "GH200" in words:
        named = []  # the memory in its name may be that of its processor
    if part := re.search(_SLICE, name, re.IGNORECASE):
        return [f"{part[1]}GB"]
    if named:
        # The memory in the name wins, whatever card of that family is usual.
        of_that_size = [known for known in fitting if GPU_GIGABYTES[known] == named[0]]
        return of_that_size or [f"{named[0]:g}GB"]
    return fitting
