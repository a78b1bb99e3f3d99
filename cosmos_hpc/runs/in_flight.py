"""Which videos were in flight when a worker was killed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils import files


class InFlight:
    """A note on the disk of the videos that are being decoded, for the worker after this one.

    A worker that was killed leaves the note behind. That alone accuses no video: a job may have
    lost its machine. So the videos of the note become suspects, which the next worker decodes
    first, and one at a time. A second death counts only against a video that was in flight alone,
    and only if it gave no clip since it was begun.

    The keys and the name of the file, ``in_hand``, are those of existing runs.

    Args:
        path: of the note; no other process writes it.
        finished: clips of each video in the journal; a video without any may be left out.

    Attributes:
        deaths: number of workers that died while a video was in flight, by the video's index.
    """

    def __init__(self, path: Path, finished: Mapping[int, int]) -> None:
        self._path = path
        left = _read(path)
        self.deaths = {int(index): count for index, count in left["deaths"].items()}
        in_flight = {int(index): clips for index, clips in left["in_hand"].items()}
        for index, clips in in_flight.items():
            if finished.get(index, 0) > clips:
                self.deaths.pop(index, None)
            elif len(in_flight) == 1 or index not in self.deaths:
                self.deaths[index] = self.deaths.get(index, 0) + 1
        self._in_flight: dict[int, int] = {}
        self._write()

    def begin(self, index: int, clips: int) -> None:
        """Note a video, of which ``clips`` clips are finished, before it is decoded."""
        self._in_flight[index] = clips
        self._write()

    def gave(self, index: int) -> None:
        """A clip was decoded: the video is no longer a suspect."""
        if self.deaths.pop(index, None):
            self._write()

    def end(self, index: int) -> None:
        """The video has ended; written with the next one that begins, or by ``flush``."""
        del self._in_flight[index]
        self._stale = True

    def flush(self) -> None:
        """Write which videos have ended, if no other has begun since."""
        if self._stale:
            self._write()

    def close(self) -> None:
        """Write that nothing is in flight: this worker ends in order."""
        self._in_flight.clear()
        self._write()

    def remove(self) -> None:
        """Delete the note, after the work is done."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._stale = False
        # Not flushed to the disk: it must survive this process, not the machine.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"deaths": self.deaths, "in_hand": self._in_flight}))
        os.replace(temporary, self._path)


def clear_in_flight(path: Path) -> None:
    """Clear the note of a worker that was stopped on purpose, so that no video is blamed for it."""
    left = _read(path)
    if left["in_hand"]:
        files.write_json(path, {**left, "in_hand": {}})


def _read(path: Path) -> dict[str, dict[str, int]]:
    left = None
    # After a crash of the machine the note may be incomplete.
    with contextlib.suppress(WorkError):
        left = files.read_json(path)
    return left or {"deaths": {}, "in_hand": {}}
