"""What a video's header says, without decoding it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av

from cosmos_hpc.worker.video.streams import OPTIONS, best_stream, declared_duration

#: Reading a header is mostly waiting for the disk.
_THREADS = 16


def declared_frames(paths: list[str]) -> Iterator[int]:
    """Frames that the header of each file promises; 0 where it does not say or cannot be read."""
    yield from map(int, _of_files(paths, _frames))


def declared_seconds(paths: list[str]) -> Iterator[float]:
    """How long each file is by its header; 0 where it does not say or cannot be read."""
    yield from _of_files(paths, lambda *opened: float(declared_duration(*opened)))


#: Reads something from an open file and its stream of pictures.
_Read = Callable[[av.container.InputContainer, av.video.stream.VideoStream], float]


def _of_files(paths: list[str], read: _Read) -> Iterator[float]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda path: _of_file(path, read), paths)


def _of_file(path: str, read: _Read) -> float:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return 0  # a pipe would be waited for
        with av.open(path, metadata_errors="replace", options=OPTIONS) as container:
            video = best_stream(container)
            return max(0, read(container, video)) if video else 0
    except (av.error.FFmpegError, OSError, ValueError):
        return 0  # the worker says why


def _frames(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> int:
    if stream.frames:
        return int(stream.frames)
    return round(float(declared_duration(container, stream)) * float(stream.average_rate or 0))
