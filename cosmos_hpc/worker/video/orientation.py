"""Which way up the frames of a video are to be shown, by the display matrix that goes with them."""

from __future__ import annotations

import math
import struct

import av
from av.sidedata.sidedata import Type as SideDataType


def _unnamed(cls: type[SideDataType], number: int) -> SideDataType:
    """A type of side data that FFmpeg has and PyAV has no name for."""
    member = object.__new__(cls)
    member._name_ = f"TYPE_{number}"
    member._value_ = number  # type: ignore[assignment]
    return member


# EXIF, views of stereo pictures: PyAV gives no side data of a frame that has some of such a type.
SideDataType._missing_ = classmethod(_unnamed)  # type: ignore[assignment]

#: ``a, b, c, d`` of ISO/IEC 14496-12: a pixel at (x, y) is shown at (a x + c y, b x + d y), y
#: downwards, on any scale.
Matrix = tuple[int, int, int, int]


def orientation(matrix: Matrix | None) -> tuple[bool, int]:
    """How frames are made upright that a display matrix goes with: the nearest of eight ways.

    Args:
        matrix: None: as they are.

    Returns:
        Whether to mirror left and right, then degrees counter-clockwise by which to turn.
    """
    if matrix is None:
        return False, 0
    a, b, c, d = matrix
    mirrored = a * d - b * c < 0
    if mirrored:
        # Once mirrored, x runs the other way, and a rotation is left.
        a, b = -a, -b
    # Of a rotation a = d and b = -c; the mean is right for those that are not quite one.
    degrees = math.degrees(math.atan2(c - b, a + d))
    return mirrored, round(degrees / 90) * 90 % 360


def matrix_of(frame: av.VideoFrame) -> Matrix | None:
    """``a, b, c, d`` of a frame's display matrix, of the stream or its own; None: there is none."""
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None or len(bytes(data)) < 36:
        return None
    entries = struct.unpack("=9i", bytes(data)[:36])
    a, b, c, d = entries[0], entries[1], entries[3], entries[4]
    return (a, b, c, d) if a * d - b * c else None
