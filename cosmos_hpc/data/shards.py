"""Shards: contiguous parts of the pinned list of videos, and the markers of finished ones."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils import files
from cosmos_hpc.utils.annotations import NonNegativeFloat, NonNegativeInt, PositiveInt
from cosmos_hpc.utils.conversion import convert

#: Files of every shard.
CONTENT = ("tokens.bin", "tokens.idx", "clips.jsonl", "failed.jsonl")


def balanced_bounds(costs: Sequence[int], shards: int) -> list[int]:
    """Where to cut a list into contiguous shards of about equal cost.

    Each cut is where the cost before it is nearest to its share, so that a shard is off by no more
    than its first and last video. Every shard has at least one.

    Args:
        costs: positive; of each video.
        shards: at most as many as videos.

    Returns:
        ``shards + 1`` indices: shard ``i`` holds videos ``bounds[i]`` to ``bounds[i + 1] - 1``.
    """
    sums = [0, *itertools.accumulate(costs)]
    bounds = [0]
    for cut in range(1, shards):
        share = sums[-1] * cut / shards
        above = bisect.bisect_left(sums, share)
        nearest = above - int(share - sums[above - 1] <= sums[above] - share)
        bounds.append(max(bounds[-1] + 1, min(nearest, len(costs) - (shards - cut))))
    return [*bounds, len(costs)]


def folders_above(paths: Iterable[str]) -> list[str]:
    """The deepest folders that hold all of the absolute ones of some paths, one per top folder.

    What is to be mounted into a container, beside the folder of the relative ones.
    """
    above: dict[str, str] = {}
    for folder in {os.path.split(path)[0] for path in paths if path.startswith("/")}:
        top = folder.split("/")[1]
        above[top] = os.path.commonpath([above.get(top, folder), folder])
    return sorted(above.values())


class ShardMarker(Struct, frozen=True):
    """What a finished shard says of itself in ``done.json``.

    Attributes:
        shard: its number.
        videos, clips, failed, padded: how many it holds; of videos, all and those that failed.
        ids_per_clip: ids of a clip.
        sha256: digest of each file.
        seconds: time spent, by activity.
    """

    shard: NonNegativeInt
    videos: PositiveInt
    clips: NonNegativeInt
    failed: NonNegativeInt
    padded: NonNegativeInt
    ids_per_clip: PositiveInt
    sha256: dict[str, Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]]
    seconds: dict[str, NonNegativeFloat]


def publish_shard(temporary: Path, shard: Path, marker: dict[str, Any], finalized: Path) -> None:
    """Give a finished shard its marker and its place.

    Args:
        temporary: its folder until now, beside its place.
        shard: its place.
        marker: what :class:`ShardMarker` says.
        finalized: marker of the finalize stage, which knew nothing of this shard.
    """
    write_marker(temporary, marker)
    finalized.unlink(missing_ok=True)
    files.publish(temporary, shard)


def write_marker(shard: Path, marker: dict[str, Any]) -> None:
    """Write the marker of a shard, with a digest of itself."""
    convert(marker, ShardMarker)
    files.write_json(shard / "done.json", {**marker, "digest": _digest(marker)})


def read_marker(shard: Path) -> ShardMarker | None:
    """The marker of a shard's folder; None where there is none.

    Raises:
        WorkError: it is damaged; says what to do.
    """
    path = shard / "done.json"
    row = files.read_json(path)
    if row is None:
        return None
    try:
        whole = row.pop("digest") == _digest(row) and set(CONTENT) <= set(row["sha256"])
        marker = convert(row, ShardMarker) if whole else None
    except (AttributeError, KeyError, TypeError, ValueError):
        marker = None
    if marker is None:
        raise WorkError(
            f"{path} is damaged, it is not what was written; delete {shard} and run the same "
            f"command again"
        )
    return marker


def _digest(marker: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()
