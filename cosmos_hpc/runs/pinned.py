"""The pinned list of a run's videos, and the shard that each belongs to."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cosmos_hpc.data.shards import balanced_bounds, folders_above
from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils import files
from cosmos_hpc.utils.links import Links


class ShardVideos(NamedTuple):
    """The videos of a shard.

    Attributes:
        root: folder that their paths are relative to.
        first: index of the first of them among those of the run.
        rows: of each a ``path`` and what else the input says of it.
    """

    root: Path
    first: int
    rows: list[dict[str, Any]]


class PinnedVideos:
    """The list of videos and the bounds of the shards, below ``data``.

    Attributes:
        videos: the list, one JSON row per video.
        shards: how it is cut.
    """

    def __init__(self, path: Path) -> None:
        self.videos = path / "videos.jsonl"
        self.shards = path / "shards.json"

    def num_shards(self) -> int:
        """Number of shards; 0 before they are planned."""
        return max(0, len(self.bounds()) - 1)

    def num_videos(self) -> int:
        """Number of videos; 0 before they are planned."""
        return self.bounds()[-1]

    def folders(self) -> list[str]:
        """Folders that hold the videos; none before they are planned."""
        pinned = files.read_json(self.shards)
        return [pinned["root"], *pinned["folders"]] if pinned else []

    def bounds(self) -> list[int]:
        """Index of the first video of each shard, and their number; 0 before."""
        pinned = files.read_json(self.shards)
        return list(pinned["bounds"]) if pinned else [0]

    def pin(
        self,
        root: str,
        videos: Sequence[str | dict[str, Any]],
        shards: int,
        costs: tuple[str, Sequence[int]] | None = None,
    ) -> None:
        """Write the list and the bounds, once: a continued run keeps them.

        Args:
            root: folder that paths are relative to.
            videos: paths, or rows with a ``path`` and more.
            shards: how many.
            costs: a unit and what each video costs in it; None where all cost the same.
        """
        if self.shards.exists():
            return
        unit, each = costs or ("videos", [1] * len(videos))
        bounds = balanced_bounds(each, shards)
        offsets, crcs = [0], []
        with files.replacing(self.videos) as f:
            for first, end in itertools.pairwise(bounds):
                rows = ({"path": v} if isinstance(v, str) else v for v in videos[first:end])
                block = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
                f.write(block)
                offsets.append(f.tell())
                crcs.append(zlib.crc32(block))
        pinned = {
            "root": str(Path(root).resolve()),
            "folders": folders_above(v if isinstance(v, str) else v["path"] for v in videos),
            "unit": unit,
            "costs": [sum(each[first:end]) for first, end in itertools.pairwise(bounds)],
            "bounds": bounds,
            "offsets": offsets,
            "crcs": crcs,
        }
        files.write_json(self.shards, pinned)

    def take_over(self, other: PinnedVideos) -> None:
        """Take the list and the bounds of another run, once."""
        if self.shards.exists():
            return
        self.shards.parent.mkdir(parents=True, exist_ok=True)
        links = Links()
        # The bounds last: with them the list counts as pinned.
        links.link(other.videos, self.videos)
        links.link(other.shards, self.shards)

    def of_shard(self, shard: int) -> ShardVideos:
        """The videos of a shard; reads no others, however long the list is.

        Raises:
            WorkError: the list is not the one that was pinned.
        """
        pinned = files.read_json(self.shards)
        begin, end = pinned["offsets"][shard : shard + 2]
        with open(self.videos, "rb") as f:
            f.seek(begin)
            block = f.read(end - begin)
        if zlib.crc32(block) != pinned["crcs"][shard]:
            raise WorkError(
                f"{self.videos} is damaged: the rows of shard {shard} are not those that were "
                f"pinned; submit the request again under another --name"
            )
        rows = [json.loads(line) for line in block.splitlines()]
        return ShardVideos(Path(pinned["root"]), pinned["bounds"][shard], rows)
