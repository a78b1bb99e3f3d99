"""Videos that are wrong, or merely unusual, in one way each."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition


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
    pixel_aspect: Fraction | None = None,
    matrix: list[int] | None = None,
    transfer: int | None = None,
) -> Path:
    """Encode pictures at 30 frames per second; the ending of the name decides the container.

    Args:
        pixel_aspect: width of a pixel by its height.
        matrix: nine numbers, as FFmpeg has them, by which players turn and mirror.
        transfer: number of the transfer characteristics (ITU-T H.273).
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=30, options=encoder or {})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if matrix:
            stream.set_display_matrix(matrix)
        if transfer:
            stream.codec_context.color_trc = transfer
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
    """Write a rotation into the track header's matrix, as telephones do."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise]
    return set_matrix(path, a, b, c, d)


def set_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Write the matrix of a track header (ISO/IEC 14496-12): (x, y) to (ax + cy, bx + dy)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    fixed = (round(n * (1 << 16)) for n in (a, b, c, d))
    content[start : start + 36] = struct.pack(
        ">9i", next(fixed), next(fixed), 0, next(fixed), next(fixed), 0, 0, 0, 1 << 30
    )
    path.write_bytes(content)
    return path


def insert_box(path: Path, parents: str, box: bytes, replaces: str = "") -> Path:
    """Put a box at the end of another one, the last of ``parents``; ``moov`` is behind the data.

    Args:
        parents: names from the outside to the inside, with spaces between them.
        replaces: name of a box to take away from there.
    """
    content = bytearray(path.read_bytes())
    places: list[int] = []
    for name in parents.split():
        places.append(content.index(name.encode(), places[-1] if places else 0))
    if replaces and (old := content.find(replaces.encode(), places[-1])) > 0:
        length = int.from_bytes(content[old - 4 : old], "big")
        del content[old - 4 : old - 4 + length]
        _grow(content, places, -length)
    end = places[-1] - 4 + int.from_bytes(content[places[-1] - 4 : places[-1]], "big")
    content[end:end] = box
    _grow(content, places, len(box))
    path.write_bytes(content)
    return path


def _grow(content: bytearray, places: list[int], growth: int) -> None:
    for place in places:
        length = int.from_bytes(content[place - 4 : place], "big")
        content[place - 4 : place] = struct.pack(">I", length + growth)


def set_edits(path: Path, edits: list[tuple[int, int]]) -> Path:
    """Give a track an edit list: milliseconds of each part, and where it begins in ticks.

    A part that begins at -1 shows nothing.
    """
    entries = b"".join(struct.pack(">iiI", *edit, 1 << 16) for edit in edits)
    elst = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    box = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    return insert_box(path, "moov trak", box, replaces="edts")


def set_aperture(path: Path, width: int, height: int, right: int, down: int) -> Path:
    """Give a track of H.264 a clean aperture whose centre lies off that of the picture."""
    clap = struct.pack(">I4sIIIIiIiI", 40, b"clap", width, 1, height, 1, right, 1, down, 1)
    return insert_box(path, "moov trak mdia minf stbl stsd avc1", clap)


def insert_element(path: Path, parents: str, element: bytes) -> Path:
    """Put an element at the end of another one in a live Matroska file.

    Args:
        parents: numbers in hexadecimal from the outside to the inside, with spaces between them.
    """
    content = bytearray(path.read_bytes())
    place, sizes = 0, []
    wanted = [bytes.fromhex(number) for number in parents.split()]
    while wanted:
        number = bytes(content[place : place + 9 - content[place].bit_length()])
        place += len(number)
        width = 9 - content[place].bit_length()
        ones = (1 << 7 * width) - 1
        length = int.from_bytes(content[place : place + width], "big") & ones
        if number == wanted[0]:
            del wanted[0]
            sizes.append((place, width, length))
            length = length if not wanted else 0
        elif length == ones:  # the segment
            length = 0
        place += width + length
    content[place:place] = element
    growth = len(element)
    for place, width, length in reversed(sizes):
        content[place : place + width] = (1 << 56 | length + growth).to_bytes(8, "big")
        growth += 8 - width
    path.write_bytes(content)
    return path


def boxes(path: Path) -> list[tuple[str, bytes]]:
    """Names of the outermost boxes of an MP4 file, and all their bytes."""
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:4], "big")
        found.append((content[4:8].decode(), content[:length]))
        content = content[length:]
    return found


def truncate(path: Path, keep: float) -> Path:
    """Keep the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def write_timed(
    path: Path,
    pictures: np.ndarray,
    milliseconds: list[int],
    hold: int = 0,
    codec: str = "libx264",
    encoder: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode pictures, each with its own time stamp.

    Args:
        hold: milliseconds that the last one stays; 0: the container says what it likes.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=30, options=encoder or {})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for picture, time in zip(pictures, milliseconds, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        if hold:
            packets[-1].duration = round(hold * Fraction(1, 1000) / packets[-1].time_base)
        for packet in packets:
            container.mux(packet)
    return path


def write_streams(
    path: Path,
    *streams: tuple[np.ndarray, dict[str, Any]],
    options: dict[str, str] | None = None,
) -> Path:
    """Write several streams of pictures, each with ``codec``, ``pix_fmt`` and ``disposition``."""
    with av.open(str(path), "w", options=options or {}) as container:
        outs = []
        for pictures, how in streams:
            stream = container.add_stream(how.get("codec", "libx264"), rate=30)
            stream.height, stream.width = pictures.shape[1:3]
            stream.pix_fmt = how.get("pix_fmt", "yuv420p")
            stream.disposition = how.get("disposition", Disposition(0))
            outs.append(stream)
        for stream, (pictures, _) in zip(outs, streams, strict=True):
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def rewrite(source: Path, target: Path, bits: str) -> Path:
    """Copy a video through a filter of its bits, such as ``h264_metadata=...``."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        bitstream = BitStreamFilterContext(bits, stream, out)
        for packet in old.demux(stream):
            for changed in bitstream.filter(packet if packet.size else None):
                changed.stream = out
                new.mux(changed)
    return target


def copy(source: Path, target: Path, skip: int = 0, insert: bytes = b"", at: int = 0) -> Path:
    """Copy the packets of a video, less some at its beginning; ``insert`` is put into each."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        out = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size and number >= skip:
                content = bytes(packet)
                changed = av.Packet(content[:at] + insert + content[at:])
                changed.pts, changed.dts = packet.pts, packet.dts
                changed.time_base, changed.is_keyframe = packet.time_base, packet.is_keyframe
                changed.stream = out
                new.mux(changed)
    return target


def append(path: Path, content: bytes) -> Path:
    """Write something behind a video."""
    path.write_bytes(path.read_bytes() + content)
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
