"""Sweeps in the folder of runs: which runs belong together, and whose tokens they take over.

A sweep is a number of runs beside each other in one folder, which differ in some settings of the
training. One of them prepares the tokens. The finalize stage of the others makes hard links to its
files once they are there. From then on no run needs another: any of them may be deleted.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import STAGES, is_done, marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.utils.links import Links

#: The stage that links tokens in a run which takes them over, and that makes them in other runs.
TAKES_OVER = "finalize"
#: The stage that such a run leaves to the one that prepares.
LEFT_OUT = "preprocess"


class Membership(Struct, frozen=True):
    """That a run is one of a sweep.

    Attributes:
        sweep: name of the sweep.
        settings: those that are swept, each with its value in this run.
        tokens: name of the run beside it whose tokens it takes over; None: it prepares its own.
    """

    sweep: str
    settings: dict[str, Any]
    tokens: str | None = None


def membership(run: RunFolder) -> Membership | None:
    """Which sweep a run belongs to; None for others.

    Raises:
        WorkError: the file that says so is damaged.
    """
    found = files.read_json(run.sweep_file)
    try:
        return Membership(**found) if found else None
    except TypeError:
        raise WorkError(f"{run.sweep_file} is damaged; delete it") from None


def join_sweep(run: RunFolder, member: Membership) -> None:
    """Note that a run belongs to a sweep."""
    files.write_json(run.sweep_file, asdict(member))


def exists(run: RunFolder) -> bool:
    """Whether the run was submitted before, and not only prepared by a dry run."""
    return run.info.exists() and run.begun()


def source_of(run: RunFolder, member: Membership | None = None) -> RunFolder | None:
    """The run whose tokens a run is going to take over; None where it has or prepares its own.

    Args:
        run: its folder.
        member: what it is going to be, where it does not exist yet.
    """
    member = member or membership(run)
    if member is None or member.tokens is None or marker_path(run, TAKES_OVER).exists():
        return None
    source = RunFolder(run.path.parent / member.tokens)
    # Where that run was deleted before, this one prepares its own.
    return source if source.info.exists() and source.data.num_videos() else None


def member_of(run: RunFolder, asked: Membership | None) -> Membership | None:
    """The sweep that a run belongs to: as it was submitted first, else as it is asked for now."""
    if not exists(run):
        return asked or membership(run)
    # It may have prepared tokens before it came to the sweep.
    return membership(run) or (replace(asked, tokens=None) if asked else None)


def own_stages(
    run: RunFolder, recipe: Recipe, asked: Sequence[str], source: RunFolder | None
) -> list[str]:
    """The stages that a run which takes over tokens carries out itself.

    Args:
        run: its folder.
        recipe: of the run.
        asked: names of stages that are asked for.
        source: whose tokens it is going to take over; None where it has them, or that run is gone.
    """
    names = {*asked}
    if source:
        names -= {LEFT_OUT}
    elif TAKES_OVER in names and not is_done(run, recipe, TAKES_OVER):
        names |= {LEFT_OUT}
    return [name for name in STAGES if name in names]


def choose_source(runs: Sequence[RunFolder]) -> RunFolder:
    """Which run of a sweep prepares: one that has done so or has begun to, else the first."""
    done = [run for run in runs if marker_path(run, TAKES_OVER).exists()]
    begun = [run for run in runs if exists(run) and source_of(run) is None]
    return [*done, *begun, *runs][0]


def take_over_tokens(run: RunFolder, recipe: Recipe, source: RunFolder) -> None:
    """Give a run the tokens of another one: all of them at once, as links that take no space.

    Raises:
        WorkError: the other run has not prepared them, or prepares other videos.
    """
    if not is_done(source, recipe, TAKES_OVER):
        raise WorkError(
            f"run {source.name}, whose tokens this run takes over, has not prepared them; "
            f"cosmos-hpc retry {source.path}, then retry this run"
        )
    if files.read_json(source.data.shards) != files.read_json(run.data.shards):
        raise WorkError(
            f"run {source.name} has prepared other videos than this run was submitted for; delete "
            f"{run.sweep_file}, and cosmos-hpc retry {run.path} prepares its own"
        )
    temporary = run.tokens.path.with_name(f".{run.tokens.path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    links = Links()
    shutil.copytree(
        source.tokens.path,
        temporary,
        symlinks=True,
        # Journals and what is being written.
        ignore=shutil.ignore_patterns("partial", ".*"),
        copy_function=lambda old, new: links.link(Path(old), Path(new)),
    )
    files.publish(temporary, run.tokens.path)
