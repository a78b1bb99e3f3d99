"""Writes frames as an H.264 video, a few at a time."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from cosmos_hpc.utils import files

#: Constant rate factor of x264: at this one no difference is to be seen, for two or three times the
#: bytes of its default, with which many tokens of a video that is read again would differ.
_CRF = "12"


class VideoWriter:
    """An mp4 that is complete at the end of the ``with`` block, or not there after an error.

    Args:
        path: of the file.
        rate: frames per second.
        height, width: in pixels; an odd one is made even by repeating the last row or column, as
            players ask for.
    """

    def __init__(self, path: Path, rate: float, height: int, width: int) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._temporary), "w", format="mp4")
        exact = Fraction(rate).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=exact)
        self._pad = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": _CRF}

    def __enter__(self) -> VideoWriter:
        return self

    def add(self, pixels: np.ndarray) -> None:
        """Add frames uint8 ``[3, T, H, W]``, RGB."""
        frames = np.pad(pixels.transpose(1, 2, 3, 0), self._pad, "edge")
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if error is None:
                files.fsync_path(self._temporary)
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def write_frames(path: Path, pixels: np.ndarray, rate: float) -> None:
    """Write frames uint8 ``[3, T, H, W]``, RGB."""
    with VideoWriter(path, rate, *pixels.shape[2:]) as video:
        video.add(pixels)
