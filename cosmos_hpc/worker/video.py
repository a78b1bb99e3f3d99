"""From a video file to the frames of a clip, decoding no more than the clip needs."""

from __future__ import annotations

import contextlib
import errno
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos_hpc.progress import Stopwatch

#: The machine's trouble: the task stops, and the next one tries the video again.
_NOT_THE_VIDEO_S_FAULT = {
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


class VideoError(Exception):
    """A video that gives no clip.

    Attributes:
        kind: ``unreadable``, ``truncated``, ``short`` or ``missing``, for counting.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Clip:
    """Frames of a clip and how they came about.

    Attributes:
        pixels: uint8 ``[3, T, H, W]``, RGB.
        seconds: time in the video of the frame after the last decoded one, about the clip's length.
        padded: frames at the end that repeat the last one.
        rotated: degrees counter-clockwise by which the frames were turned, as the file asks for.
    """

    pixels: Tensor
    seconds: float
    padded: int
    rotated: int


def read_clip(
    path: Path,
    frames: int,
    height: int,
    width: int,
    pad: bool = True,
    clock: Stopwatch | None = None,
) -> Clip:
    """Read the first ``frames`` frames of a video, upright, resized and cropped to the clip.

    Frames are resized, keeping their aspect, until both sides cover the target (antialiased
    bilinear), then cropped to its centre.

    Args:
        pad: repeat the last frame of a shorter video; otherwise it is an error.
        clock: is told the time spent in ``decode`` and ``resize``.

    Raises:
        VideoError: the file holds no such clip; the message says why.
        OSError: the machine cannot read now, whatever the file holds.
    """
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return _read(container, frames, height, width, pad, clock or Stopwatch())
    except FileNotFoundError:
        raise VideoError("missing", "the file is gone") from None
    except PermissionError:
        raise VideoError("unreadable", "no permission to read the file") from None
    except (av.error.FFmpegError, OSError, ValueError) as e:
        if getattr(e, "errno", None) in _NOT_THE_VIDEO_S_FAULT:
            raise
        reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
        if path.exists() and path.stat().st_size == 0:
            reason = "the file is empty"
        raise VideoError("unreadable", f"not a readable video: {reason}") from None


def _read(
    container: av.container.InputContainer,
    frames: int,
    height: int,
    width: int,
    pad: bool,
    clock: Stopwatch,
) -> Clip:
    if not container.streams.video:
        raise VideoError("unreadable", "the file has no video stream")
    stream = container.streams.video[0]
    pixels = torch.empty(frames, 3, height, width, dtype=torch.uint8)
    found, seconds, rotated = 0, 0.0, 0
    problems: list[str] = []
    for frame in _frames(container, stream, problems):
        clock.lap("decode")
        rotated = int(frame.rotation or 0)
        pixels[found] = _fit(_upright(frame), height, width)
        clock.lap("resize")
        found += 1
        seconds = float(frame.time or 0.0)
        if found == frames:
            break

    if found < frames:
        declared = _declared_frames(container, stream)
        if not problems and declared > found + max(1, declared // 10):
            problems.append(f"the header says {declared}")
        if problems:
            reason = f"truncated or damaged: {found} frames decode, then: {problems[0]}"
            raise VideoError("truncated", reason)
        if found == 0:
            raise VideoError("unreadable", "the video holds no frame")
        if not pad:
            raise VideoError("short", f"{found} frames, a clip needs {frames}")
        pixels[found:] = pixels[found - 1]
    rate = float(stream.average_rate or 0)
    length = seconds + (1 / rate if rate else 0.0)
    return Clip(pixels.transpose(0, 1).contiguous(), length, frames - found, rotated % 360)


def _frames(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    problems: list[str],
) -> Iterator[av.VideoFrame]:
    """Frames up to the first damage, which is added to ``problems``."""
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                if frame.is_corrupt:
                    problems.append("a damaged frame")
                    return
                yield frame
    except av.error.FFmpegError as e:
        problems.append(e.strerror or str(e))
        # The good frames before it that the decoder still holds back.
        with contextlib.suppress(av.error.FFmpegError):
            yield from stream.decode(None)


def _declared_frames(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> int:
    """Frames that the header promises; 0 where it does not say."""
    if stream.frames:
        return int(stream.frames)
    rate = float(stream.average_rate or 0)
    if stream.duration and stream.time_base:
        return int(stream.duration * stream.time_base * rate)
    # Matroska counts no frames, and says the duration of a stream in words.
    words = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if words:
        hours, minutes, seconds = map(float, words.groups())
        return int((hours * 3600 + minutes * 60 + seconds) * rate)
    return int((container.duration or 0) / 1e6 * rate)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """RGB pixels uint8 ``[H, W, 3]``, turned as the file's rotation metadata asks."""
    rgb = frame.to_ndarray(format="rgb24")
    quarter_turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb


def _fit(rgb: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 ``[3, height, width]``: resized until both sides cover the target, then cropped."""
    image = torch.from_numpy(rgb).permute(2, 0, 1)
    rows, columns = rgb.shape[:2]
    # In integers, so that a side which fits exactly is not rounded up.
    if width * rows >= height * columns:
        size = (math.ceil(rows * width / columns), width)
    else:
        size = (height, math.ceil(columns * height / rows))
    if size != (rows, columns):
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return image[:, top : top + height, left : left + width]
