"""The frames of a video file in the order of time, from any moment on; needs PyAV alone."""

from __future__ import annotations

import contextlib
import errno
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from cosmos_hpc.errors import WorkError

#: The machine's trouble: the task stops, and the next one tries the video again.
_NOT_THE_VIDEO_S_FAULT = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
#: Pixels of a frame, twice those of 8K. A damaged header may promise more than the memory holds.
MAX_PIXELS = 1 << 26
#: Nothing but the file itself, whatever is written in it, and no playlists.
OPTIONS = {
    "max_pixels": str(MAX_PIXELS),
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,ivf,m4v,h264,hevc,mpegvideo",
}
#: Earlier moments are reached by decoding from the beginning.
_SEEK_FROM = Fraction(2)
#: Seconds before the moment at which a seek may land instead, one after the other.
_SEEK_BACK = (Fraction(0), Fraction(1, 4), Fraction(2), Fraction(10))
#: A frame counts as shown at a moment that lies so much before it: containers round times.
TOLERANCE = Fraction(1, 1000)


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


class VideoError(Exception):
    """A video that gives no clip, or no more of them.

    Attributes:
        kind: ``unreadable``, ``truncated``, ``short``, ``missing``, ``too_large`` or
            ``killed_worker``, for counting.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return VideoError, (self.kind, str(self))


def _cannot_read(path: Path, error: BaseException) -> bool:
    """Whether it is the machine that cannot read a file now, whatever the file holds."""
    code = getattr(error, "errno", None)
    if code != errno.EIO:
        return code in _NOT_THE_VIDEO_S_FAULT
    # FFmpeg says so of some files that end too early as well. Those can be read.
    try:
        with open(path, "rb") as f:
            while f.read(1 << 20):
                pass
    except OSError:
        return True
    return False


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into a :class:`VideoError`.

    Raises:
        VideoError: the file is not a video that can be used; the message says why.
        WorkError: the machine cannot read now, whatever the file holds.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError("unreadable", "not a readable video: it is not a file")
        if not status.st_size:
            raise VideoError("unreadable", "not a readable video: the file is empty")
        yield
    except FileNotFoundError:
        raise VideoError("missing", "the file is not there") from None
    except PermissionError:
        raise VideoError("unreadable", "no permission to read the file") from None
    except (av.error.FFmpegError, OSError, ValueError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
        if _cannot_read(path, e):
            raise WorkError(
                f"this machine cannot read {path}: {reason}; try again, and where it stays so, "
                "move the file away: it is then listed as missing"
            ) from None
        raise VideoError("unreadable", f"not a readable video: {reason}") from None


@dataclass(frozen=True)
class Shown:
    """A decoded frame.

    Attributes:
        frame: as decoded.
        time, end: from when until when it is shown, in seconds from the video's beginning.
        pts: its time stamp in the file; None where it has no good one.
    """

    frame: av.VideoFrame
    time: Fraction
    end: Fraction
    pts: int | None


class Video:
    """An open video file; use as a context manager, within :func:`reading`.

    Args:
        path: of the file.
        tick: is called for every frame that is decoded.

    Attributes:
        problems: why frames ended before the file did; empty where they did not.
        end: when the last decoded frame ends, in seconds from the video's beginning.

    Raises:
        VideoError: the file has no video stream, or one of absurd size.
    """

    def __init__(self, path: Path, tick: Callable[[], None] | None = None) -> None:
        self._path, self._tick = path, tick or (lambda: None)
        self.problems: list[str] = []
        self.end = Fraction(0)
        self._open()

    def _open(self) -> None:
        self._container = av.open(str(self._path), metadata_errors="replace", options=OPTIONS)
        if not self._container.streams.video:
            self._container.close()
            raise VideoError("unreadable", "the file has no video stream")
        stream = self._stream = self._container.streams.video[0]
        codec = stream.codec_context
        if codec is None:
            raise VideoError("unreadable", "the codec of the video is unknown")
        if not codec.width or not codec.height:
            raise _without_size(self._path)
        if codec.width * codec.height > MAX_PIXELS:
            raise _too_large(f"{codec.width}x{codec.height}")
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        # One thread: a file a core is faster than a file on all cores, and nothing is decoded
        # beyond the last frame that is wanted.
        codec.thread_count = 1
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 30)
        self._last: Fraction | None = None
        # AVI keeps no time stamps: those of reordered frames are guesses.
        dated = stream.start_time is not None and self._container.format.name != "avi"
        self._origin: int | None = stream.start_time if dated else None
        self._can_seek = dated

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def declared_end(self) -> Fraction:
        """When the video ends, as the header says; 0 where it does not say."""
        if self._stream.frames:
            return self._stream.frames / self.rate
        return declared_duration(self._container, self._stream)

    def time_of(self, pts: int) -> Fraction:
        """When the frame with a time stamp is shown."""
        return (pts - (self._origin or 0)) * Fraction(self._stream.time_base)

    def frames_from(self, moment: Fraction) -> Iterator[Shown]:
        """Frames from the one that is shown at ``moment`` on: the same with and without a seek.

        Nothing where the video ends before; its first frame where it begins later.
        """
        frames = self._after_seek(moment) if moment > _SEEK_FROM and self._can_seek else None
        waiting: Shown | None = None
        for shown in frames or self._timed():
            if waiting is not None and shown.time > moment + TOLERANCE:
                yield waiting
                waiting = None
            if shown.time > moment + TOLERANCE:
                yield shown
            else:
                waiting = shown
        if waiting is not None and self.end > moment + TOLERANCE:
            yield waiting

    def _after_seek(self, moment: Fraction) -> Iterator[Shown] | None:
        """Frames from a key frame at or before ``moment`` on; None where there is no such way.

        What is decoded from a key frame on is what a decoder gives that came from the beginning:
        frames that follow it in the file but are shown before it, which may refer to earlier ones,
        lie before the moment. A stream that is refreshed little by little has no key frames that
        decode to pictures of their own, and counts as one without a way.
        """
        for back in _SEEK_BACK:
            target = max(Fraction(0), moment - back)
            pts = int(target / Fraction(self._stream.time_base)) + (self._origin or 0)
            try:
                self._container.seek(pts, stream=self._stream)
                frames = self._timed()
                first = next(frames, None)
            except av.error.FFmpegError:
                break
            if first is None or self.problems:
                self.problems.clear()
                continue
            is_key = first.frame.key_frame and first.frame.pict_type == _INTRA
            if is_key and first.pts is not None and first.time <= moment + TOLERANCE:
                return _chain(first, frames)
        self.restart()
        return None

    def restart(self) -> None:
        """Open the file anew: frames come from the beginning again."""
        self._container.close()
        self.problems.clear()
        self._open()

    def _timed(self) -> Iterator[Shown]:
        self._last = None
        for frame in self._decoded():
            self._tick()
            yield self._at(frame)

    def _at(self, frame: av.VideoFrame) -> Shown:
        pts = frame.pts
        if pts is not None and self._origin is None:
            self._origin = pts
        time = self.time_of(pts) if pts is not None else None
        if time is None or (self._last is not None and time <= self._last):
            # Without a time, or before the frame that came before: as if at a steady rate.
            pts, time = None, Fraction(0) if self._last is None else self._last + 1 / self.rate
        self._last, self.end = time, time + 1 / self.rate
        return Shown(frame, time, self.end, pts)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Frames up to the first damage, which is added to ``problems``."""
        try:
            for packet in self._container.demux(self._stream):
                for frame in packet.decode():
                    if frame.is_corrupt:
                        self.problems.append("a damaged frame")
                        return
                    yield frame
        except av.error.FFmpegError as e:
            # A damaged packet may ask for any amount of memory.
            if e.errno != errno.ENOMEM and _cannot_read(self._path, e):
                raise
            self.problems.append(e.strerror or str(e))
            # The good frames before it that the decoder still holds back.
            with contextlib.suppress(av.error.FFmpegError):
                yield from self._stream.decode(None)


#: av.video.frame.PictureType.I
_INTRA = 1


def _chain(first: Shown, rest: Iterator[Shown]) -> Iterator[Shown]:
    yield first
    yield from rest


def _too_large(size: str) -> VideoError:
    return VideoError("too_large", f"the header says frames of {size} pixels")


def _without_size(path: Path) -> VideoError:
    """Why FFmpeg gives no size: it forgets one that it refuses, and says so in its log alone."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as log:
            av.open(str(path), metadata_errors="replace", options=OPTIONS).close()
    finally:
        av.logging.set_level(None)
    for _, _, message in log:
        if found := re.search(r"Picture size (\d+x\d+)", message):
            return _too_large(found[1])
    return VideoError("unreadable", "not a readable video: nothing says how large its frames are")
