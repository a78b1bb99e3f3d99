"""Videos that are wrong, or merely unusual, in one way each."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def frames(count: int, height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    """Smooth moving colours, uint8 ``[T, H, W, 3]``; the left half is darker than the right."""
    t, y, x = np.mgrid[:count, :height, :width]
    shade = 60 + 120 * (x > width // 2) + 20 * np.sin((x + y + 3 * t + seed) / 9)
    return np.stack([shade, 0.8 * shade, 255 - shade], -1).clip(0, 255).astype(np.uint8)


def write(
    path: Path,
    pictures: np.ndarray,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    encoder: dict[str, str] | None = None,
) -> Path:
    """Encode pictures at 30 frames a second; the ending of the name decides the container."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=30, options=encoder or {})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
        )
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def set_rotation(path: Path, clockwise: int) -> Path:
    """Write a rotation into the track header's matrix, as telephones do (ISO/IEC 14496-12)."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    content[start : start + 36] = matrix
    path.write_bytes(content)
    return path


def truncate(path: Path, keep: float) -> Path:
    """Keep the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def write_timed(path: Path, pictures: np.ndarray, milliseconds: list[int]) -> Path:
    """Encode pictures, each with its own time stamp."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(pictures, milliseconds, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def noisy(count: int, height: int = 48, width: int = 80) -> np.ndarray:
    """Pictures that all differ, also once they are compressed."""
    noise = np.random.default_rng(0).integers(0, 40, (count, height // 4, width // 4, 3))
    return (
        (frames(count, height, width) + noise.repeat(4, 1).repeat(4, 2))
        .clip(0, 255)
        .astype(np.uint8)
    )


def patch(path: Path, old: bytes, new: bytes) -> Path:
    """Replace the first ``old`` in a file."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path
