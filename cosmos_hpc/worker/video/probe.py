"""What a video's header says, without decoding it."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av

from cosmos_hpc.worker.video.spans import WHOLE, Span
from cosmos_hpc.worker.video.streams import OPTIONS, best_stream, declared_duration

#: Reading a header is mostly waiting for the disk.
_THREADS = 16


def declared_frames(paths: list[str]) -> Iterator[int]:
    """Frames that the header of each file promises; 0 where it does not say or cannot be read."""
    yield from map(int, _of_files([(path, WHOLE) for path in paths], _frames))


def declared_seconds(rows: list[dict[str, Any]]) -> Iterator[float]:
    """How long each video is by its row, else by the header of its file, ``path``.

    0 where neither says, or the file cannot be read.
    """
    spans = [(row["path"], Span.of(row)) for row in rows]
    said = [span.seconds for _, span in spans]
    unsaid = [one for one, seconds in zip(spans, said, strict=True) if seconds is None]
    declared = _of_files(unsaid, lambda *opened: float(declared_duration(*opened)))
    for (_, span), seconds in zip(spans, said, strict=True):
        yield max(0.0, next(declared) - span.start) if seconds is None else seconds


#: Reads something from an open file and its stream of pictures.
_Read = Callable[[av.container.InputContainer, av.video.stream.VideoStream], float]


def _of_files(spans: list[tuple[str, Span]], read: _Read) -> Iterator[float]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda one: _of_file(one[0], one[1], read), spans)


def _of_file(path: str, span: Span, read: _Read) -> float:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return 0  # a pipe would be waited for
        with contextlib.ExitStack() as stack:
            member = stack.enter_context(span.open(Path(path))) if span.size is not None else path
            opened = av.open(member, metadata_errors="replace", options=OPTIONS)
            container = stack.enter_context(opened)
            video = best_stream(container)
            return max(0, read(container, video)) if video else 0
    except (av.error.FFmpegError, OSError, ValueError):
        return 0  # the worker says why


def _frames(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> int:
    if stream.frames:
        return int(stream.frames)
    return round(float(declared_duration(container, stream)) * float(stream.average_rate or 0))
