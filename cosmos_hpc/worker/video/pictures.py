"""From decoded frames to the pictures of a clip: upright, of square pixels, resized and cropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorTrc, Interpolation, VideoReformatter

from cosmos_hpc.worker.video.frames import Shown
from cosmos_hpc.worker.video.orientation import matrix_of, orientation
from cosmos_hpc.worker.video.problems import VideoError
from cosmos_hpc.worker.video.streams import MAX_PIXELS

#: Antialiased when it makes smaller, and the same on every processor.
_SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
#: Transfer characteristics of high dynamic range.
_HDR = {int(ColorTrc.SMPTE2084): "pq", int(ColorTrc.ARIB_STD_B67): "hlg"}


@dataclass(frozen=True)
class Look:
    """How a frame is prepared.

    Attributes:
        width, height: of the frame as it is stored, in pixels, without what the container hides.
        mirrored: left and right change places, before the frame is turned.
        rotated: degrees counter-clockwise by which the frame is turned.
        aspect: width of a stored pixel by its height.
        aperture: what the container lets one see of a decoded frame, ``WIDTHxHEIGHT+LEFT+TOP`` in
            pixels; None: all.
        hdr: ``pq`` or ``hlg`` for a frame of high dynamic range, whose values are taken as they
            are; None for any other.
    """

    width: int
    height: int
    mirrored: bool = False
    rotated: int = 0
    aspect: Fraction = Fraction(1)
    aperture: str | None = None
    hdr: str | None = None

    @property
    def notes(self) -> dict[str, Any]:
        """Fields of a table besides ``rotated``; only unusual values."""
        notes: dict[str, Any] = {}
        if self.mirrored:
            notes["mirrored"] = True
        if self.aspect != 1:
            notes["pixel_aspect"] = f"{self.aspect.numerator}:{self.aspect.denominator}"
        if self.aperture:
            notes["aperture"] = self.aperture
        if self.hdr:
            notes["hdr"] = self.hdr
        return notes


class Painter:
    """Draws frames of one video into clips.

    Args:
        hidden: pixels at the left, right, top and bottom of each frame that are not to be seen.
    """

    def __init__(self, hidden: tuple[int, int, int, int] = (0, 0, 0, 0)) -> None:
        self._scaler = VideoReformatter()
        self._hidden = hidden
        self._graph: av.filter.Graph | None = None
        self._graph_is_for: tuple[int, int, str] | None = None

    def draw(self, shown: Shown, target: np.ndarray) -> Look:
        """Draw a frame into uint8 ``[3, H, W]``, RGB, as :func:`fit` does.

        Raises:
            VideoError: the picture is so long and narrow that it cannot cover the clip.
        """
        look = self._look(shown)
        fit(self._scaler, self._seen(shown.frame) if look.aperture else shown.frame, target, look)
        return look

    def _look(self, shown: Shown) -> Look:
        frame, aspect = shown.frame, shown.aspect
        left, right, top, bottom = self._hidden
        width, height = frame.width - left - right, frame.height - top - bottom
        aperture = None
        if any(self._hidden) and width > 0 and height > 0:
            aperture = f"{width}x{height}+{left}+{top}"
        else:
            width, height = frame.width, frame.height
        mirrored, rotated = orientation(shown.matrix)
        if round(width * aspect) == width:
            # So little, often what is left of rounding another size, that no pixel is to be moved.
            aspect = Fraction(1)
        hdr = _HDR.get(frame.color_trc)
        return Look(width, height, mirrored, rotated, aspect, aperture, hdr)

    def _seen(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A frame without what is hidden."""
        shape = frame.width, frame.height, frame.format.name
        if self._graph is None or self._graph_is_for != shape:
            left, right, top, bottom = self._hidden
            width, height = frame.width - left - right, frame.height - top - bottom
            graph = av.filter.Graph()
            graph.link_nodes(
                graph.add_buffer(
                    width=frame.width,
                    height=frame.height,
                    format=frame.format,
                    time_base=Fraction(1, 1000),
                ),
                graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1"),
                graph.add("buffersink"),
            ).configure()
            self._graph, self._graph_is_for = graph, shape
        self._graph.vpush(frame)
        return self._graph.vpull()


def fit(
    scaler: VideoReformatter, frame: av.VideoFrame, target: np.ndarray, look: Look | None = None
) -> None:
    """Draw a frame into uint8 ``[3, H, W]``, RGB: upright, resized to cover it, and cropped.

    Colours are converted and the size changed in one step.

    Args:
        look: what is to be done; None: what the frame's own display matrix asks for.

    Raises:
        VideoError: the picture is so long and narrow that it cannot cover the clip.
    """
    look = look or Look(frame.width, frame.height, *orientation(matrix_of(frame)))
    height, width = target.shape[1:]
    # As it is shown, still lying on its side where it is stored so.
    columns, rows = look.width * look.aspect.numerator, look.height * look.aspect.denominator
    wanted = (width, height) if look.rotated % 180 else (height, width)
    size = _covering(rows, columns, *wanted)
    if size[0] * size[1] > MAX_PIXELS:
        raise VideoError("too_large", f"{_in_words(look)} cannot cover a clip")
    picture = scaler.reformat(
        frame, width=size[1], height=size[0], format="gbrp", interpolation=_SCALING, threads=1
    )
    top, left = (size[0] - wanted[0]) // 2, (size[1] - wanted[1]) // 2
    for channel, plane in enumerate((2, 0, 1)):  # of green, blue, red
        stored = _plane(picture.planes[plane])
        target[channel] = _upright(stored, look, top, left, height, width)


def _covering(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a picture of that shape whose sides both cover the given ones."""
    # In integers, so that a side which fits exactly is not rounded up.
    if width * rows >= height * columns:
        return math.ceil(Fraction(rows * width, columns)), width
    return height, math.ceil(Fraction(columns * height, rows))


def _in_words(look: Look) -> str:
    across, up = look.width, look.height
    if look.rotated % 180:
        across, up = up, across
    aspect = look.notes.get("pixel_aspect")
    return f"a picture of {across}x{up}" + (f" with pixels of {aspect}" if aspect else "")


def _upright(
    stored: np.ndarray, look: Look, top: int, left: int, height: int, width: int
) -> np.ndarray:
    """The middle of a stored plane, as it is to be seen, ``[height, width]``."""
    if look.mirrored:
        stored = stored[:, ::-1]
    turned = np.rot90(stored, look.rotated // 90)
    if look.rotated % 180:
        top, left = left, top
    return turned[top : top + height, left : left + width]


def _plane(plane: av.video.plane.VideoPlane) -> np.ndarray:
    pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return pixels[: plane.height, : plane.width]
