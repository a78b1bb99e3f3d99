"""The finalize stage: check every shard, report what failed, join the shards."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.shards import ShardMarker, read_marker
from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.runs.sweeps import source_of, take_over_tokens
from cosmos_hpc.utils import files
from cosmos_hpc.utils.imports import load
from cosmos_hpc.utils.progress import ByteProgress, count_of, say
from cosmos_hpc.worker.datasets.index import read_lengths, write_index
from cosmos_hpc.worker.datasets.journal import ID_DTYPE

#: Shards that are read at a time: a network file system gives one reader a part of its speed.
_THREADS = 4
#: Bytes that are hashed and written at a time; they stay in the processor's cache in between.
_BLOCK = 1 << 20
#: Failed videos of each kind that the report shows.
_EXAMPLES = 3
_JOINED = ("tokens.bin", "tokens.idx", "clips.jsonl")

T = TypeVar("T")


class CheckedShard(NamedTuple):
    """What a checked shard holds besides its tokens.

    Attributes:
        folder: where it lies.
        marker: its marker.
        failed: rows of the videos that failed.
        lengths: int32 ``[clips]``, ids of each document.
    """

    folder: Path
    marker: ShardMarker
    failed: list[dict[str, Any]]
    lengths: np.ndarray


def finalize(run: RunFolder, recipe: Recipe, task: int = 0) -> None:
    """Check the shards and join them into one indexed dataset, with a table of its clips.

    Without ``data.join`` the ids stay in the shards, in the order of their numbers. A run that
    takes over the tokens of another one gets those instead.

    Raises:
        WorkError: shards are missing or damaged, or more videos failed than the recipe allows.
    """
    if source := source_of(run):
        take_over_tokens(run, recipe, source)
        say(f"has the tokens of run {source.name}")
        return
    bounds = run.data.bounds()

    def read(number: int) -> CheckedShard:
        videos = bounds[number + 1] - bounds[number]
        return _read(run.tokens.shard(number), number, videos, recipe.data.ids_per_clip)

    shards = _each(read, range(len(bounds) - 1))
    # Before anything can go wrong: the list is what a person needs then.
    failed = [row for shard in shards for row in shard.failed]
    by_kind = _report(run, failed)
    nothing = not any(shard.marker.clips for shard in shards)
    _check_failures(run, recipe, failed, by_kind, nothing)

    joined = _join(run, shards, recipe.data.join)
    marker = {
        "videos": run.data.num_videos(),
        "failed": by_kind,
        **joined,
        **_task_files(run, recipe),
    }
    files.write_json(marker_path(run, "finalize"), marker)
    clips, videos = count_of(joined["clips"], "clip"), count_of(marker["videos"], "video")
    say(f"{clips} of {videos}, {count_of(len(failed), 'video')} failed")


def _task_files(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Write what the training of the recipe's task reads besides; returns what to say of it."""
    if recipe.kind.files is None:
        return {}
    return {"samples": load(recipe.kind.files)(run, recipe)}


def _join(run: RunFolder, shards: list[CheckedShard], join: bool) -> dict[str, Any]:
    """Check the tokens and write what training reads; returns what the marker says of it."""
    temporary = run.tokens.path / ".joined.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _copy_ids(shards, temporary / "tokens.bin" if join else None)
    if join:
        write_index(temporary / "tokens.idx", np.concatenate([s.lengths for s in shards]))
    files.write_jsonl(temporary / "clips.jsonl", _table(shards))
    for name in _JOINED:
        (run.tokens.path / name).unlink(missing_ok=True)
        if (temporary / name).exists():
            files.fsync_path(temporary / name)
            (temporary / name).rename(run.tokens.path / name)
    shutil.rmtree(temporary)
    files.fsync_path(run.tokens.path)
    return {
        "clips": sum(shard.marker.clips for shard in shards),
        "padded": sum(shard.marker.padded for shard in shards),
        "joined": join,
    }


def _each(work: Callable[[int], T], items: range) -> list[T]:
    """Results of ``work`` for each item, several at a time.

    Raises:
        WorkError: it raised some; says the first, and how many more.
    """

    def attempt(item: int) -> T | WorkError:
        try:
            return work(item)
        except WorkError as e:
            return e

    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(attempt, items))
    problems = [result for result in results if isinstance(result, WorkError)]
    if problems:
        more = (
            f" (and {len(problems) - 1} more shards are damaged or missing)" if problems[1:] else ""
        )
        raise WorkError(f"{problems[0]}{more}")
    return [result for result in results if not isinstance(result, WorkError)]


def _read(folder: Path, number: int, videos: int, ids_per_clip: int) -> CheckedShard:
    """A shard whose marker and tables are as they were written, and fit the run.

    Raises:
        WorkError: they are not, or it is not there.
    """
    marker = read_marker(folder)
    if marker is None:
        raise WorkError(
            f"shard {folder.name} is not complete: {folder} has no done.json; submit again"
        )
    wanted = (number, videos, ids_per_clip)
    found = (marker.shard, marker.videos, marker.ids_per_clip)
    if found != wanted:
        raise WorkError(
            f"{folder} is not of this run: its number, videos and tokens per clip are {found}, not "
            f"{wanted}; delete it and submit again"
        )
    for name, digest in marker.sha256.items():
        path = folder / name
        # The ids are read once, when they are joined.
        if not path.is_file() or (name != "tokens.bin" and files.sha256(path) != digest):
            raise _damaged(path)
    lengths = read_lengths(folder / "tokens.idx")
    failed = files.read_jsonl(folder / "failed.jsonl")
    size = lengths.sum() * ID_DTYPE().itemsize
    if (folder / "tokens.bin").stat().st_size != size:
        raise _damaged(folder / "tokens.bin")
    if (len(lengths), len(failed)) != (marker.clips, marker.failed):
        raise WorkError(
            f"{folder / 'done.json'} counts other clips or videos than there are; delete {folder} "
            f"and submit again"
        )
    return CheckedShard(folder, marker, failed, lengths)


def _damaged(path: Path) -> WorkError:
    return WorkError(
        f"{path} is not what its shard's marker says; delete {path.parent} and submit again"
    )


def _report(run: RunFolder, failed: list[dict[str, Any]]) -> dict[str, int]:
    """Write and say which videos failed and why; returns their number by kind, most first."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in failed:
        kinds.setdefault(row["error"], []).append(row)
    ordered = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    summary = {
        kind: {
            "count": len(rows),
            "examples": [{k: row[k] for k in ("video", "reason")} for row in rows[:_EXAMPLES]],
        }
        for kind, rows in ordered
    }
    # A kind, as everywhere that people look at; shards call it an error.
    named = [{"kind" if key == "error" else key: row[key] for key in row} for row in failed]
    files.write_jsonl(run.tokens.failed, named)
    files.write_json(
        run.tokens.failed_summary, {"videos": run.data.num_videos(), "failed": summary}
    )
    for kind, rows in ordered:
        say(f"failed, {kind}: {len(rows)} of {count_of(run.data.num_videos(), 'video')}, of which")
        for row in rows[:_EXAMPLES]:
            say(f"  {row['video']!r}: {row['reason']}")
    return {kind: len(rows) for kind, rows in ordered}


def _check_failures(
    run: RunFolder,
    recipe: Recipe,
    failed: list[dict[str, Any]],
    by_kind: dict[str, int],
    nothing: bool,
) -> None:
    if not failed:
        return
    videos = run.data.num_videos()
    kinds = ", ".join(f"{count} {kind}" for kind, count in by_kind.items())
    first = f"the first is {failed[0]['video']!r}: {failed[0]['reason']}"
    summary = (
        f"{len(failed)} of {count_of(videos, 'video')} failed ({kinds}); {first}; all are in "
        f"{run.tokens.failed}"
    )
    if nothing:
        raise WorkError(f"no video could be prepared: {summary}")
    allowed = recipe.data.max_failed_fraction
    if len(failed) > allowed * videos:
        raise WorkError(
            f"{summary}; data.max_failed_fraction={allowed:g} does not allow that many. Allow "
            f"more, or repair them, delete the shards that hold them below "
            f"{run.tokens.path / 'shards'} and submit again"
        )
    say(summary)


def _table(shards: list[CheckedShard]) -> Iterator[dict[str, Any]]:
    """One row per clip: its document, its number in its video, and what its shard says of it.

    A list that a shard says of a video holds one value for each of its clips.
    """
    document = 0
    for shard in shards:
        for row in files.read_jsonl(shard.folder / "clips.jsonl"):
            for clip in range(row.pop("clips")):
                own = {k: v[clip] if isinstance(v, list) else v for k, v in row.items()}
                yield {"document": document, "clip": clip, **own}
                document += 1


def _copy_ids(shards: list[CheckedShard], target: Path | None) -> None:
    """Check the tokens of all shards, each byte read once; with a target, while they are copied.

    Raises:
        WorkError: the ids of a shard are not those that were written.
    """
    sizes = [int(shard.lengths.sum()) * ID_DTYPE().itemsize for shard in shards]
    starts = [0, *accumulate(sizes)]
    progress = ByteProgress("joined" if target else "checked", starts[-1])
    ready = threading.Lock()

    def copy(number: int) -> None:
        source, digest = shards[number].folder / "tokens.bin", hashlib.sha256()
        place, block = starts[number], memoryview(bytearray(min(_BLOCK, sizes[number])))
        with open(source, "rb", buffering=0) as f:
            while block and (size := f.readinto(block)):
                digest.update(block[:size])
                if joined is not None:
                    _write_all(joined, block[:size], place)
                place += size
                with ready:
                    progress.update(progress.done + size)
        if digest.hexdigest() != shards[number].marker.sha256["tokens.bin"]:
            raise _damaged(source)

    joined = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666) if target else None
    try:
        _each(copy, range(len(shards)))
        if joined is not None:
            os.fsync(joined)
    finally:
        if joined is not None:
            os.close(joined)


def _write_all(file: int, content: memoryview, place: int) -> None:
    while content:
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written
