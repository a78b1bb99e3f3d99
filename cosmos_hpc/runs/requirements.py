"""What a run needs before it starts: libraries of its stages, and space on the disk."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.stages import STAGES
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import gigabytes


def install_command(extra: str) -> str:
    """How to install an extra of this package."""
    return f"pip install -c constraints.txt '.[{extra}]'"


def check_installed(stages: Iterable[str], otherwise: str = "") -> None:
    """Refuse stages whose libraries are not installed on this machine, where they would run.

    Args:
        stages: names of them.
        otherwise: what else to do than to install them.

    Raises:
        RequestError: names the library and how to install it.
    """
    for stage in stages:
        for library, extra in STAGES[stage].libraries.items():
            if importlib.util.find_spec(library) is None:
                raise RequestError(
                    f"stage {stage} needs {library}, which is not installed; "
                    f"{install_command(extra)}{otherwise}"
                )


def _bytes_in(folder: Path) -> int:
    """Bytes of the files below a folder, in which jobs may be working."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(parent, name))
                # Links to one file are one file.
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def check_disk(wanted: int, folder: Path) -> None:
    """Refuse a folder whose file system has no room for a run of this many bytes in total.

    What is in the folder already counts.

    Raises:
        RequestError: too little space; says how much is needed.
    """
    existing = files.nearest_existing(folder)
    free = shutil.disk_usage(existing).free
    there = _bytes_in(folder)
    if free < wanted - there:
        raise RequestError(
            f"the run needs up to {gigabytes(wanted - there)} in {existing}, which has "
            f"{gigabytes(free)} free; free some space, choose another place with cluster.runs=DIR, "
            f"or go without this check with cluster.check_disk=false"
        )
