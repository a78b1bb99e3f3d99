"""Findings of a check of a profile, and the checks that all kinds share."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.errors import WorkError, explain_os_error
from cosmos_hpc.runs.requirements import install_command
from cosmos_hpc.runs.stages import STAGES
from cosmos_hpc.utils import files
from cosmos_hpc.utils.html import table


class Finding(Struct, frozen=True):
    """The result of one check.

    Attributes:
        level: ``ok``, ``problem``, or ``note`` for what may be meant so.
        text: what was found, and what to do.
    """

    level: str
    text: str


class Findings(list[Finding]):
    """What a check has found, which shows itself as text and in a notebook."""

    @property
    def problems(self) -> int:
        """How many findings are problems."""
        return sum(finding.level == "problem" for finding in self)

    def __str__(self) -> str:
        return "\n".join(f"  {finding.level:<8} {finding.text}" for finding in self)

    def _repr_html_(self) -> str:
        return table((), [(finding.level, finding.text) for finding in self])


def libraries() -> dict[str, str]:
    """Libraries that the stages import, each with the extra of this package that installs it."""
    return {name: extra for stage in STAGES.values() for name, extra in stage.libraries.items()}


def python_finding(
    python: str, missing: list[str], otherwise: str = "", level: str = "problem"
) -> Finding:
    """Which libraries of the stages a Python lacks."""
    wanted = libraries()
    if not missing:
        return Finding("ok", f"python: {python} has {', '.join(wanted)}")
    # The training's extra brings what the others need as well.
    extras = {wanted[name] for name in missing}
    command = install_command("train" if "train" in extras else min(extras))
    return Finding(level, f"python={python} has no {', '.join(missing)}; {command}{otherwise}")


def missing_here() -> list[str]:
    """Libraries of the stages that this Python lacks."""
    return [name for name in libraries() if importlib.util.find_spec(name) is None]


def runs_finding(cluster: Cluster) -> Finding:
    """Whether run folders can be made."""
    folder = Path(cluster.runs).absolute()
    if found := files.file_in_place_of(folder):
        return Finding("problem", f"runs={cluster.runs}: {found} is a file, not a folder")
    existing = files.nearest_existing(folder)
    try:
        with tempfile.TemporaryDirectory(dir=existing) as place, files.lock(Path(place, "lock")):
            pass
    except WorkError as e:
        return Finding("problem", f"runs={cluster.runs}: {e}")
    except OSError as e:
        doing = f"runs={cluster.runs}: writing to {existing}"
        return Finding("problem", explain_os_error(e, doing))
    return Finding("ok", f"runs: {folder} can be written")


def environment_findings(names: Iterable[str]) -> Iterator[Finding]:
    """Which variables that jobs are given are set here."""
    for name in names:
        present = bool(os.environ.get(name))
        yield Finding("ok" if present else "note", f"{name} is {'set' if present else 'not set'}")
