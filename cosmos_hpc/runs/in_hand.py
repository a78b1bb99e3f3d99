"""Which videos were being decoded when a worker died without a word."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils import files


class InHand:
    """A note on the disk of the videos that are being decoded, for the worker after this one.

    A worker that was killed leaves the note behind. That alone is no one's fault: a job may have
    lost its machine. So the videos of the note become suspects, which the next worker decodes
    first, and one at a time. Only a death with nothing else in hand counts on top of that, and only
    where the video gave no clip since it was begun.

    Args:
        path: of the note; nobody else works on it.
        finished: clips of each video that the journal has, 0 where it has none.

    Attributes:
        deaths: workers that died with a video in hand, by the video's index.
    """

    def __init__(self, path: Path, finished: Mapping[int, int]) -> None:
        self._path = path
        left = _read(path)
        self.deaths = {int(index): count for index, count in left["deaths"].items()}
        in_hand = {int(index): clips for index, clips in left["in_hand"].items()}
        for index, clips in in_hand.items():
            if finished.get(index, 0) > clips:
                self.deaths.pop(index, None)
            elif len(in_hand) == 1 or index not in self.deaths:
                self.deaths[index] = self.deaths.get(index, 0) + 1
        self._in_hand: dict[int, int] = {}
        self._write()

    def begin(self, index: int, clips: int) -> None:
        """Note a video, of which so many clips are finished, before it is decoded."""
        self._in_hand[index] = clips
        self._write()

    def gave(self, index: int) -> None:
        """A clip came: the video is no suspect any more."""
        if self.deaths.pop(index, None):
            self._write()

    def end(self, index: int) -> None:
        """The video is no longer in hand; noted with the next that is begun, or at ``flush``."""
        del self._in_hand[index]
        self._stale = True

    def flush(self) -> None:
        """Note which videos have ended, where no other was begun since."""
        if self._stale:
            self._write()

    def close(self) -> None:
        """Nothing is in hand: this worker ends as it should."""
        self._in_hand.clear()
        self._write()

    def remove(self) -> None:
        """Delete the note, after the work is done."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._stale = False
        # Not flushed to the disk: it is to outlive this process, not the machine.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"deaths": self.deaths, "in_hand": self._in_hand}))
        os.replace(temporary, self._path)


def absolve(path: Path) -> None:
    """Have a note, whose worker was stopped on purpose and is gone, blame no video for that."""
    left = _read(path)
    if left["in_hand"]:
        files.write_json(path, {**left, "in_hand": {}})


def _read(path: Path) -> dict[str, dict[str, int]]:
    left = None
    # Of a machine that went down as well it may be half a note.
    with contextlib.suppress(WorkError):
        left = files.read_json(path)
    return left or {"deaths": {}, "in_hand": {}}
