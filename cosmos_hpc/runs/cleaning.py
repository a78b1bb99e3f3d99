"""Frees the disk: whole runs, and what finished runs do not need any more.

Nothing is deleted of a run that somebody works on or that is queued, nor where that is not known.
What is deleted lies below the run folder once all links are resolved; a link is removed, never what
it points to.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmos_hpc.data.shards import read_marker
from cosmos_hpc.errors import CosmosError, RequestError, WorkError
from cosmos_hpc.runs.completion import train_is_done
from cosmos_hpc.runs.disk_use import entries_below, size, use_of
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.queue import Queue
from cosmos_hpc.runs.sources import newest_checkpoint
from cosmos_hpc.runs.sweeps import source_of
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import count_of

#: Temporary names of writers: of files that are renamed when they are whole, and of shards.
_TEMPORARY = re.compile(r"\..+\.tmp|\d+\.in_hand\.tmp")
#: Files of a shard that is being prepared, which a published one needs no more.
_OF_SHARD = (".jsonl", ".ids", ".in_hand.json")

#: Asks the queues about runs, by their paths.
Ask = Callable[[Iterable[RunFolder]], Mapping[Path, Queue]]


@dataclass(frozen=True)
class Removal:
    """Something that can be deleted.

    Attributes:
        run: that it is of.
        path: file, folder or link.
        bytes: that this frees on the disk.
        why: what it is.
    """

    run: RunFolder
    path: Path
    bytes: int
    why: str


def why_not(run: RunFolder, queue: Queue) -> str:
    """Why nothing of a run may be deleted; empty where it may.

    Args:
        run: its folder.
        queue: what the queue says of it now.
    """
    if queue.problem:
        return (
            f"what works on it is not known: {queue.problem}; delete it where its queue can be "
            f"asked, or by hand: rm -r {shlex.quote(str(run.path))}"
        )
    if queue.stages:
        return f"it has jobs in the queue; cosmos-hpc cancel {run.name} first"
    try:
        for path in [run.lock, *run.task_lock("x", 0).parent.glob("*")]:
            if holder := files.lock_holder(path):
                return f"{holder} works on it; cosmos-hpc cancel {run.name} first"
    except WorkError as e:
        return f"what works on it is not known: {e}"
    return ""


def readers_of(
    runs: Sequence[RunFolder], others: Iterable[RunFolder]
) -> dict[Path, list[RunFolder]]:
    """Other runs that begin from checkpoints in the folders of some runs, by the path of each."""
    found: dict[Path, list[RunFolder]] = {run.path: [] for run in runs}
    for other in others:
        weights = _weights_of(other)
        for path in found:
            if weights and other.path != path and weights.is_relative_to(path):
                found[path].append(other)
    return found


def takers_of(
    runs: Sequence[RunFolder], others: Iterable[RunFolder]
) -> dict[Path, list[RunFolder]]:
    """Runs that are going to take over the tokens of some runs of a sweep, and have not yet.

    Returns:
        By the path of each of the latter.
    """
    found: dict[Path, list[RunFolder]] = {run.path: [] for run in runs}
    for other in others:
        with contextlib.suppress(CosmosError, OSError):
            source = source_of(other)
            if source and source.path in found:
                found[source.path].append(other)
    return found


def _weights_of(run: RunFolder) -> Path | None:
    """The checkpoint on this disk that a run begins from; None for others."""
    with contextlib.suppress(CosmosError, OSError):
        named = Path(run.recipe().train.init_from or "")
        return named.resolve() if named.is_absolute() and named.exists() else None
    return None


def last_checkpoints(runs: Iterable[RunFolder]) -> dict[Path, Path | None]:
    """The last checkpoint of each finished training, by the path of its run.

    None where it is elsewhere, and before the end; without runs that cannot be read.
    """
    found = {}
    for run in runs:
        with contextlib.suppress(CosmosError, OSError):
            found[run.path] = _last_checkpoint(run)
    return found


def spare(
    runs: Sequence[RunFolder],
    last: Mapping[Path, Path | None],
    among: Iterable[RunFolder] = (),
) -> list[Removal]:
    """What runs do not need any more, on the understanding that nobody works on them.

    That is: checkpoints of finished trainings beside the last one, as far as no run begins from
    them; journals of published shards; temporary files of killed writers.

    Args:
        runs: to look at.
        last: their :func:`last_checkpoints`.
        among: other runs, which may begin from checkpoints of these.
    """
    kept = {weights for run in (*runs, *among) if (weights := _weights_of(run))}
    found = []
    # Nothing is offered of a run that cannot be read.
    for run in (run for run in runs if run.path in last):
        with contextlib.suppress(CosmosError, OSError):
            found += [*_checkpoints(run, last[run.path], kept), *_journals(run), *_temporaries(run)]
    return [removal for removal in found if _lies_below(removal.path, removal.run)]


def _lies_below(path: Path, run: RunFolder) -> bool:
    """Whether something is in a run's folder, links on the way to it resolved."""
    return (path.parent.resolve() / path.name).is_relative_to(run.path)


def _removal(run: RunFolder, path: Path, why: str) -> Iterator[Removal]:
    # It may vanish meanwhile.
    with contextlib.suppress(FileNotFoundError):
        yield Removal(run, path, use_of(path).freed, why)


def _last_checkpoint(run: RunFolder) -> Path | None:
    recipe = run.recipe()
    if recipe.trains and train_is_done(run, recipe, run.train.done, 0):
        last = newest_checkpoint(run)
        return last if last.resolve().is_dir() else None
    return None


def _checkpoints(run: RunFolder, last: Path | None, kept: set[Path]) -> Iterator[Removal]:
    if last is None:
        return  # who moved it may count on the others
    needed = {last.resolve(), *kept}
    for path in sorted(run.train.checkpoints.iterdir()):
        name = path.name.removeprefix("damaged-")
        whole = path.with_name(path.name.removesuffix("-unfinished")).resolve()
        if not name.startswith("step=") or any(it.is_relative_to(whole) for it in needed):
            continue
        damaged = name != path.name
        yield from _removal(run, path, f"{'damaged' if damaged else 'intermediate'} checkpoint")


def _journals(run: RunFolder) -> Iterator[Removal]:
    for path in sorted(run.tokens.journal(0).parent.glob("*")):
        shard, dot, ending = path.name.partition(".")
        of_shard = shard.isdigit() and dot + ending in _OF_SHARD
        if of_shard and read_marker(run.tokens.shard(int(shard))):
            yield from _removal(run, path, "journal of a published shard")


def _temporaries(run: RunFolder) -> Iterator[Removal]:
    found: list[Path] = []
    for path, _ in entries_below(run.path):
        # What is in a temporary folder goes with it.
        if _TEMPORARY.fullmatch(path.name) and not {*path.parents} & {*found}:
            found.append(path)
    for path in sorted(found):
        yield from _removal(run, path, "temporary file of a killed writer")


def remove(removals: Sequence[Removal], ask: Ask) -> int:
    """Delete what :func:`spare` has found, but for runs that somebody has begun to work on since.

    Args:
        removals: what to delete.
        ask: for the queues, once more.

    Returns:
        Bytes that this has freed.

    Raises:
        RequestError: somebody works on one of the runs now; nothing was deleted.
    """
    runs = {removal.run.path: removal.run for removal in removals}
    with _alone(runs.values(), ask):
        # What has changed since it was shown stays.
        there = [*runs.values()]
        still = {(found.path, found.why) for found in spare(there, last_checkpoints(there))}
        freed = 0
        for removal in removals:
            if (removal.path, removal.why) in still:
                _delete(removal.path)
                freed += removal.bytes
        return freed


def remove_runs(runs: Sequence[RunFolder], ask: Ask) -> None:
    """Delete run folders.

    Raises:
        RequestError: somebody works on one of them, or it is queued; nothing was deleted.
    """
    with _alone(runs, ask):
        for run in runs:
            # Last: what a killed removal has left is a run still, which can be removed.
            last = (run.info, run.lock)
            for path in sorted(run.path.iterdir()):
                if path not in last:
                    _delete(path)
            for path in last:
                path.unlink(missing_ok=True)
            run.path.rmdir()


@contextlib.contextmanager
def _alone(runs: Iterable[RunFolder], ask: Ask) -> Iterator[None]:
    """Hold the locks of runs, on which nobody works then or can begin to."""
    runs = [*runs]
    with contextlib.ExitStack() as stack:
        queues = ask(runs)
        for run in runs:
            # Before the lock is held: then this process is who works on it.
            if why := why_not(run, queues[run.path]):
                raise RequestError(f"nothing was deleted: run {run.name}: {why}")
            try:
                stack.enter_context(files.lock(run.lock))
            except BlockingIOError as e:
                raise RequestError(
                    f"nothing was deleted: run {run.name}: {e} works on it"
                ) from None
        # A submit may have ended between the question and the lock.
        queues = ask(runs)
        for run in runs:
            if queues[run.path].stages or queues[run.path].problem:
                raise RequestError(f"nothing was deleted: run {run.name} is queued now")
        yield


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    # Under a temporary name: half a folder must not look like a whole one.
    hidden = path.with_name(f".{path.name.lstrip('.')}.removed.tmp")
    if not hidden.exists():
        path.rename(hidden)
        path = hidden
    shutil.rmtree(path)


def render_kept(last: Iterable[Path | None]) -> str:
    """What finished trainings need only where they are continued; empty where there are none.

    Args:
        last: their :func:`last_checkpoints`.
    """
    sizes = []
    for path in filter(None, last):
        with contextlib.suppress(OSError):
            sizes.append(use_of(path.resolve()).bytes)
    if not sizes:
        return ""
    what = count_of(len(sizes), "last checkpoint")
    return (
        f"kept: {what} of finished trainings, {size(sum(sizes))}, with the optimizer state, which "
        f"only a continued training needs; cosmos-hpc convert writes the weights without it, after "
        f"which cosmos-hpc runs rm may delete the run"
    )


def render_removals(removals: Sequence[Removal]) -> str:
    """What would be deleted, as text: by run and kind."""
    lines = []
    for run in dict.fromkeys(removal.run.path for removal in removals):
        own = [removal for removal in removals if removal.run.path == run]
        lines.append(f"{run.name}: {size(sum(removal.bytes for removal in own))}")
        for removal in own:
            where = removal.path.relative_to(run)
            lines.append(f"  {removal.why:<33} {size(removal.bytes):>8}  {where}")
    return "\n".join(lines)
