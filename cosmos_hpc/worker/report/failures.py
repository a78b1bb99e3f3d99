"""A picture of each failed video that still gives one, decoded where it can do no harm."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path

from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils.html import data_uri
from cosmos_hpc.worker.report.videos import jpeg, smaller
from cosmos_hpc.worker.video.decoder import prepare_process
from cosmos_hpc.worker.video.frames import Video
from cosmos_hpc.worker.video.problems import VideoError, reading

#: Kinds of failure whose files are better not opened, or are not there.
NOT_OPENED = ("killed_worker", "missing", "too_large")
#: Seconds for the first picture, in which libraries are loaded, and for any other.
_FIRST, _SECONDS = 60.0, 10.0
#: Pixels of the longer side.
_SIDE = 256


def pictures(paths: Sequence[str]) -> dict[str, str]:
    """The first frame of each video that has one, as an address that holds it, by its path.

    A process of its own decodes: a video that has failed may end it or keep it busy forever, and
    then only the pictures behind it are lost.
    """
    found: dict[str, str] = {}
    if not paths:
        return found
    # Not forked: this process has threads.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_decode, args=(list(paths), theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        with suppress(EOFError):
            for number, path in enumerate(paths):
                if not ours.poll(_SECONDS if number else _FIRST):
                    break
                picture = ours.recv_bytes()
                if picture:
                    found[path] = data_uri(picture, "image/jpeg")
    finally:
        child.kill()
        child.join()
    return found


def _decode(paths: list[str], pipe: Connection) -> None:
    prepare_process()
    for path in paths:
        pipe.send_bytes(_first_frame(Path(path)))


def _first_frame(path: Path) -> bytes:
    """A JPEG file; empty where the video gives no frame."""
    with suppress(VideoError, WorkError), reading(path), Video(path) as video:
        for shown in video.frames_from(Fraction(0)):
            return jpeg(smaller(shown.frame, _SIDE))
    return b""
