"""The frames that a sample begins with: a picture, or the last ones of a video."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from cosmos_hpc.data.inputs import PICTURES
from cosmos_hpc.worker.video.clips import Cut, sampled
from cosmos_hpc.worker.video.frames import Shown, Video
from cosmos_hpc.worker.video.pictures import Painter, fit
from cosmos_hpc.worker.video.problems import VideoError, reading
from cosmos_hpc.worker.video.spans import WHOLE, Span


@dataclass(frozen=True)
class Condition:
    """Frames to continue.

    Attributes:
        pixels: uint8 ``[3, T, H, W]``, RGB.
        rate: frames per second; None for a picture where none is set.
    """

    pixels: np.ndarray
    rate: float | None


def read_condition(path: Path, cut: Cut, span: Span = WHOLE) -> Condition:
    """A picture, or the last ``cut.frames`` frames of a video, fitted as clips are.

    Args:
        path: of the file; what it is follows from its name.
        cut: size, number of frames and frame rate.
        span: the part of the file that is the video.

    Raises:
        VideoError: it cannot be read, has transparent parts, or too few frames.
        WorkError: the machine cannot read now.
    """
    if path.name.lower().endswith(PICTURES):
        return Condition(_read_picture(path, cut), cut.frame_rate)
    pixels = np.empty((3, cut.frames, cut.height, cut.width), np.uint8)
    with reading(path), Video(path, span=span) as video:
        last: collections.deque[Shown] = collections.deque(maxlen=cut.frames)
        last.extend(sampled(video, cut))
        if span.end is None:
            video.look_at_the_end()
        if video.problems and span.end is None:
            raise VideoError(
                "truncated",
                f"truncated or damaged, so that its last frames are not known: {video.problems[0]}",
            )
        if len(last) < cut.frames:
            raise VideoError(
                "short", f"it has {len(last)} frames, fewer than the {cut.frames} to begin with"
            )
        painter = Painter(video.hidden)
        for number, shown in enumerate(last):
            painter.draw(shown, pixels[:, number])
        return Condition(pixels, cut.frame_rate or float(video.rate))


def _read_picture(path: Path, cut: Cut) -> np.ndarray:
    """uint8 ``[3, 1, H, W]``."""
    from PIL import Image, ImageOps

    with reading(path):
        try:
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened)
                if upright.has_transparency_data:
                    raise VideoError(
                        "transparent",
                        "the picture has transparent parts (an alpha channel); put it on a "
                        "background first",
                    )
                rgb = np.asarray(upright.convert("RGB"))
        except (Image.DecompressionBombError, SyntaxError) as e:
            raise VideoError("unreadable", f"not a readable picture: {e}") from None
        pixels = np.empty((3, 1, cut.height, cut.width), np.uint8)
        fit(VideoReformatter(), av.VideoFrame.from_ndarray(rgb, format="rgb24"), pixels[:, 0])
    return pixels
