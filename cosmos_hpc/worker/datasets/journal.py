"""What a shard has finished so far, so that an interrupted worker resumes where it stopped."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cosmos_hpc.utils import files

#: 64 000 ids and the special ones fit; half of int32 on the disk.
ID_DTYPE = np.uint16


def in_order(row: dict[str, Any]) -> tuple[int, int]:
    """Sorts lines as a single worker that takes one video after the other would write them."""
    return row["index"], row.get("clip", 0)


class Journal:
    """One line per finished clip, its tokens in a second file, and one line per ended video.

    A line says which video (``index``) and which of its clips (``clip``), or that there are no more
    (``last``) and why (``error``, ``reason``); the last one may hold clips as well. Videos that are
    worked on at the same time take turns; the lines of each are in order. Ids reach the disk before
    their line does, so a line is a promise: what is read back after any interruption is finished
    clips, each complete. Open within a lock.

    Args:
        path: of the lines; the tokens are in a file beside it.
        ids_per_clip: ids of one clip.

    Attributes:
        rows: all lines, in order.
    """

    def __init__(self, path: Path, ids_per_clip: int) -> None:
        self.path, self.ids_path = path, path.with_suffix(".ids")
        self.ids_per_clip = ids_per_clip
        path.parent.mkdir(parents=True, exist_ok=True)
        self.ids_path.touch()
        self.rows = self._whole_rows()
        # Drop what a killed writer left after the last complete line.
        files.write_jsonl(path, self.rows)
        clips = sum(row["clips"] for row in self.rows)
        os.truncate(self.ids_path, clips * ids_per_clip * ID_DTYPE().itemsize)
        self._lines = open(path, "ab")  # noqa: SIM115 - closed in __exit__
        self._ids = open(self.ids_path, "ab")  # noqa: SIM115

    def _whole_rows(self) -> list[dict[str, Any]]:
        rows = []
        with open(self.ids_path, "rb") as f:
            for row in files.read_jsonl(self.path):
                content = f.read(row["clips"] * self.ids_per_clip * ID_DTYPE().itemsize)
                if zlib.crc32(content) != row["crc"]:
                    break
                rows.append(row)
        return rows

    def append(self, rows: list[tuple[dict[str, Any], np.ndarray]]) -> None:
        """Add lines: what each says, and its tokens, ``[clips, ids_per_clip]``."""
        lines = []
        for row, ids in rows:
            content = ids.astype(ID_DTYPE).tobytes()
            self._ids.write(content)
            lines.append({**row, "clips": len(ids), "crc": zlib.crc32(content)})
        _flush(self._ids)
        self._lines.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        _flush(self._lines)
        self.rows.extend(lines)

    def finished(self) -> dict[int, tuple[int, int | None]]:
        """Of videos that are begun and not ended: how many clips there are, and the last's mark."""
        begun: dict[int, tuple[int, int | None]] = {}
        for row in self.rows:
            if row.get("last"):
                begun.pop(row["index"], None)
            else:
                begun[row["index"]] = row["clip"] + 1, row["mark"]
        return begun

    def ended(self) -> set[int]:
        """Indices of the videos that give no further clip."""
        return {row["index"] for row in self.rows if row.get("last")}

    def documents(self) -> Iterator[np.ndarray]:
        """Ids uint16 ``[ids_per_clip]`` of all clips in the order of videos and their clips."""
        begins = itertools.accumulate((row["clips"] for row in self.rows), initial=0)
        placed = zip(self.rows, begins, strict=False)
        order = sorted(placed, key=lambda item: in_order(item[0]))
        with open(self.ids_path, "rb") as f:
            for row, begin in order:
                f.seek(begin * self.ids_per_clip * ID_DTYPE().itemsize)
                for _ in range(row["clips"]):
                    yield np.fromfile(f, ID_DTYPE, self.ids_per_clip)

    def remove(self) -> None:
        """Delete the journal, after its content has been published."""
        self.path.unlink(missing_ok=True)
        self.ids_path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._ids.close()


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
