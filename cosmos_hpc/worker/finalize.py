"""The finalize stage: check every shard, report what failed, join the shards."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from cosmos_hpc import files
from cosmos_hpc.errors import WorkError
from cosmos_hpc.progress import Progress, say
from cosmos_hpc.recipes import Recipe
from cosmos_hpc.runs import RunFolder
from cosmos_hpc.worker.journal import ID_DTYPE

_JOINED = ("tokens.bin", "tokens.idx", "clips.jsonl")


def finalize(run: RunFolder, recipe: Recipe) -> None:
    """Join the shards into one indexed dataset with a table of its clips.

    Raises:
        WorkError: a shard is missing or damaged, or more videos failed than the recipe allows.
    """
    shards = [run.shard(i) for i in range(run.num_shards())]
    markers = [_check(shard) for shard in shards]
    videos = sum(marker["videos"] for marker in markers)
    failed = [row for shard in shards for row in files.read_jsonl(shard / "failed.jsonl")]
    # Before anything can go wrong: the list is what a person needs then.
    files.write_jsonl(run.failed, failed)
    by_kind = dict(Counter(row["error"] for row in failed).most_common())
    _check_failures(run, recipe, videos, failed, by_kind)

    clips = _join(run, shards)
    marker = {
        "videos": videos,
        "failed": by_kind,
        "clips": clips,
        "padded": sum(bool(row["padded"]) for row in files.read_jsonl(run.clips)),
        "sha256": {name: files.sha256(run.tokens / name) for name in _JOINED},
    }
    files.write_json(run.marker("finalize"), marker)
    say(f"{clips} clips of {videos} videos, {len(failed)} videos failed")


def _check(shard: Path) -> dict[str, Any]:
    """The marker of a shard whose files are as it says."""
    marker: dict[str, Any] | None = files.read_json(shard / "done.json")
    if marker is None:
        raise WorkError(f"shard {shard.name} is not whole: {shard} has no done.json")
    for name, digest in marker["sha256"].items():
        path = shard / name
        if not path.is_file() or files.sha256(path) != digest:
            raise WorkError(
                f"{path} is not what its shard's marker says; delete {shard} and submit again"
            )
    return marker


def _check_failures(
    run: RunFolder,
    recipe: Recipe,
    videos: int,
    failed: list[dict[str, Any]],
    by_kind: dict[str, int],
) -> None:
    if not failed:
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in by_kind.items())
    first = f"the first is {failed[0]['video']!r}: {failed[0]['reason']}"
    summary = f"{len(failed)} of {videos} videos failed ({kinds}); {first}; all are in {run.failed}"
    if len(failed) == videos:
        raise WorkError(f"no video could be prepared: {summary}")
    allowed = recipe.data.max_failed_fraction
    if len(failed) > allowed * videos:
        raise WorkError(
            f"{summary}; data.max_failed_fraction={allowed:g} does not allow so many. Allow more, "
            f"or mend them, delete the shards that hold them below {run.tokens / 'shards'} and "
            f"submit again"
        )
    say(summary)


def _join(run: RunFolder, shards: list[Path]) -> int:
    """Join the shards' documents and tables, in order; returns the number of clips."""
    temporary = run.tokens / ".joined.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    builder = IndexedDatasetBuilder(str(temporary / "tokens.bin"), dtype=ID_DTYPE)
    progress = Progress("joined shards", len(shards))
    rows: list[dict[str, Any]] = []
    for number, shard in enumerate(shards, 1):
        builder.add_index(str(shard / "tokens"))
        for row in files.read_jsonl(shard / "clips.jsonl"):
            for clip in range(row["clips"]):
                rows.append({"document": len(rows), "clip": clip, **_clip_row(row)})
        progress.update(number)
    builder.finalize(str(temporary / "tokens.idx"))
    files.write_jsonl(temporary / "clips.jsonl", rows)
    for name in _JOINED:
        files.fsync_path(temporary / name)
        (temporary / name).replace(run.tokens / name)
    shutil.rmtree(temporary)
    return len(rows)


def _clip_row(row: dict[str, Any]) -> dict[str, Any]:
    names = ("index", "video", "clip", "time", "seconds", "padded", "rotated")
    return {key: row[key] for key in names}
