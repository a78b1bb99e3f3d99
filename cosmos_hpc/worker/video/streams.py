"""Which stream of a file is its video, and what the file says of that stream as a whole."""

from __future__ import annotations

import contextlib
import re
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Disposition

from cosmos_hpc.worker.video.problems import VideoError
from cosmos_hpc.worker.video.spans import WHOLE, Span

#: Pixels of a frame, twice those of 8K. A damaged header may promise more than the memory holds.
MAX_PIXELS = 1 << 26
#: Nothing but the file itself, whatever is written in it, and no playlists.
OPTIONS = {
    "max_pixels": str(MAX_PIXELS),
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,ivf,m4v,h264,hevc,mpegvideo",
}
#: Of files that FFmpeg can read and this package does not.
_OTHER_FORMAT = (
    "not a readable video: its container is none of those that are read; convert it to MP4, "
    "Matroska, WebM, MOV or AVI"
)
#: Streams that are made for a part of the audience; FFmpeg prefers any other.
_IMPAIRED = Disposition.hearing_impaired | Disposition.visual_impaired


def best_stream(
    container: av.container.InputContainer,
) -> av.video.stream.VideoStream | None:
    """The stream that FFmpeg calls the best, which players show; None where there is no film.

    An attached picture, the cover of a film, is none, whatever its place in the file. Where FFmpeg
    means one, or a stream that nothing decodes, it is the stream among the others that is marked
    as default, has the most frames, the highest bit rate, the largest pictures, or comes first.
    """
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    readable = [s for s in films if s.codec_context is not None] or films
    best = container.streams.best("video")
    if best in readable or not readable:
        return best if best in readable else None
    return max(readable, key=_merits)


def _merits(stream: av.video.stream.VideoStream) -> tuple[int, ...]:
    codec = stream.codec_context
    rate, size = (codec.bit_rate or 0, codec.width * codec.height) if codec else (0, 0)
    suits = (not stream.disposition & _IMPAIRED) + bool(stream.disposition & Disposition.default)
    return suits, stream.frames, rate, size, -stream.index


def open_video(
    path: Path, span: Span = WHOLE
) -> tuple[av.container.InputContainer, av.video.stream.VideoStream]:
    """Open a file, or those bytes of it that a span names, and find its video.

    Raises:
        VideoError: the file has no video stream, or one of absurd size or unknown codec.
        av.error.FFmpegError: it cannot be read.
    """
    try:
        container = _open(path, span)
    except av.error.ArgumentError:
        if any("Format not on whitelist" in message for message in _log_of(path, span)):
            raise VideoError("unreadable", _OTHER_FORMAT) from None
        raise
    try:
        stream = best_stream(container)
        if stream is None:
            but = ", only a cover picture" if container.streams.video else ""
            raise VideoError("unreadable", f"the file has no video stream{but}")
        codec = stream.codec_context
        if codec is None:
            raise VideoError("unreadable", "the codec of the video is unknown")
        if not codec.width or not codec.height:
            raise _without_size(path, span)
        if codec.width * codec.height > MAX_PIXELS:
            raise _too_large(f"{codec.width}x{codec.height}")
    except VideoError:
        container.close()
        raise
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    # One thread: one file per core is faster than a file on all cores, and nothing is decoded
    # beyond the last frame that is wanted.
    codec.thread_count = 1
    return container, stream


def _open(path: Path, span: Span) -> av.container.InputContainer:
    source = str(path) if span.size is None else span.open(path)
    return av.open(source, metadata_errors="replace", options=OPTIONS)


def declared_duration(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Fraction:
    """Seconds that a stream takes, as its header says; 0 where it does not say."""
    if stream.duration and stream.time_base:
        return Fraction(stream.duration * stream.time_base)
    # Matroska says the duration of a stream in words.
    words = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if words:
        hours, minutes, seconds = map(Fraction, words.groups())
        return hours * 3600 + minutes * 60 + seconds
    return Fraction(container.duration or 0, 1_000_000)


def margins(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> tuple[int, int, int, int]:
    """Pixels at the left, right, top and bottom of a frame that the container hides.

    MP4 calls what is left the clean aperture, Matroska says how much is cropped. What the stream
    itself hides, its decoder has cut off already.
    """
    # PyAV has this in no attribute, only in the description that FFmpeg's tools print.
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        described = container.dumps_format()
    finally:
        av.logging.set_level(level)
    number = None
    for line in described.splitlines():
        if found := re.match(r"\s*Stream #\d+:(\d+)", line):
            number = int(found[1])
        found = re.match(r"\s*Frame cropping: (\d+)/(\d+)/(\d+)/(\d+)$", line, re.IGNORECASE)
        if found and number == stream.index:
            left, right, top, bottom = map(int, found.groups())
            return left, right, top, bottom
    return 0, 0, 0, 0


class Aspects:
    """The aspect of the pixels of each frame: width by height, 1 where nothing says it.

    What a container says of a stream goes before what the frames say, as with FFmpeg; where the
    container says nothing of its own, it may change within the stream.
    """

    def __init__(self, stream: av.video.stream.VideoStream) -> None:
        self._codec = stream.codec_context
        # Before anything is decoded this is what the frames say at the beginning of the file.
        said, coded = stream.sample_aspect_ratio, self._codec.sample_aspect_ratio
        self._fixed = said if said and said != coded else None
        self._first = said
        # What hangs on a packet comes back with its frame, however long a decoder holds it back.
        self._codec.copy_opaque = self._fixed is None

    def decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        """Decode a packet so that :meth:`of` knows of its frame."""
        if self._fixed or not packet.size:
            return list(packet.decode())
        said: list[Fraction] = []
        packet.opaque = said
        frames = list(packet.decode())
        said.append(self._now())
        return frames

    def of(self, frame: av.VideoFrame) -> Fraction:
        """Of the pixels of a frame."""
        said = frame.opaque
        return said[0] if said else self._now()

    def _now(self) -> Fraction:
        aspect = self._fixed or self._codec.sample_aspect_ratio or self._first
        return Fraction(aspect) if aspect and aspect > 0 else Fraction(1)


def _too_large(size: str) -> VideoError:
    return VideoError("too_large", f"the header says frames of {size} pixels")


def _without_size(path: Path, span: Span) -> VideoError:
    """Why FFmpeg gives no size: it forgets one that it refuses."""
    for message in _log_of(path, span):
        if found := re.search(r"Picture size (\d+x\d+)", message):
            return _too_large(found[1])
    return VideoError("unreadable", "not a readable video: nothing says how large its frames are")


def _log_of(path: Path, span: Span) -> list[str]:
    """What FFmpeg says in its log alone when it opens a file."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as log, contextlib.suppress(av.error.FFmpegError):
            _open(path, span).close()
    finally:
        av.logging.set_level(None)
    return [message for _, _, message in log]
