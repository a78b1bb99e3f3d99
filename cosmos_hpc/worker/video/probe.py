"""What a video's header says, without decoding it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av

from cosmos_hpc.worker.video.streams import OPTIONS, best_stream, declared_duration

#: Reading a header is mostly waiting for the disk.
_THREADS = 16


def declared_frames(paths: list[str]) -> Iterator[int]:
    """Frames that the header of each file promises; 0 where it does not say or cannot be read."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(_of_file, paths)


def _of_file(path: str) -> int:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return 0  # a pipe would be waited for
        with av.open(path, metadata_errors="replace", options=OPTIONS) as container:
            video = best_stream(container)
            return max(0, _of_stream(container, video)) if video else 0
    except (av.error.FFmpegError, OSError, ValueError):
        return 0  # the worker says why


def _of_stream(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> int:
    if stream.frames:
        return int(stream.frames)
    return round(float(declared_duration(container, stream)) * float(stream.average_rate or 0))
