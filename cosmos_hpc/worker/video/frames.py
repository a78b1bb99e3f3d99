"""The frames of a video file in the order of time, from any moment on; needs PyAV alone."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av

from cosmos_hpc.worker.video import ends
from cosmos_hpc.worker.video.orientation import Matrix, matrix_of
from cosmos_hpc.worker.video.problems import cannot_read
from cosmos_hpc.worker.video.spans import TOLERANCE, WHOLE, Span, exact
from cosmos_hpc.worker.video.streams import Aspects, margins, open_video

#: Earlier moments are reached by decoding from the beginning.
_SEEK_FROM = Fraction(2)
#: Seconds before the moment at which a seek may land instead, one after the other.
_SEEK_BACK = (Fraction(0), Fraction(1, 4), Fraction(2), Fraction(10))
#: Seconds of half a frame of interlaced video, at most.
_FIELD = Fraction(1, 50)
#: Bytes of a packet that may say no more than that the picture stays: it need not give a frame.
_STAYS = 16
#: Pieces without a packet, of some 64 kB each, behind which more of them are looked for.
_HOLES = 1 << 20


@dataclass(frozen=True)
class Shown:
    """A decoded frame.

    Attributes:
        frame: as decoded.
        time, end: from when until when it is shown, in seconds from the video's beginning.
        pts: its time stamp in the file; None where it has no good one.
        aspect: width of its pixels by their height.
        matrix: by which it is turned and mirrored; None: it is shown as it is.
    """

    frame: av.VideoFrame
    time: Fraction
    end: Fraction
    pts: int | None
    aspect: Fraction
    matrix: Matrix | None


class Video:
    """An open video file; use as a context manager, within :func:`~problems.reading`.

    Args:
        path: of the file.
        tick: called for every decoded frame.
        span: the part of the file that is the video.

    Attributes:
        problems: why frames ended before the file did; empty where they did not.
        complete: whether frames came up to the end of the span, where it has one.
        stream: number of the stream in the file, where it has several with pictures.
        hidden: pixels at the left, right, top and bottom of each frame that are not to be seen.

    Raises:
        VideoError: the file has no video stream, or one of absurd size.
    """

    def __init__(
        self, path: Path, tick: Callable[[], None] | None = None, span: Span = WHOLE
    ) -> None:
        self._path, self._tick, self._span = path, tick or (lambda: None), span
        self.problems: list[str] = []
        self.complete = False
        self._end = Fraction(0)
        self._open()

    def _open(self) -> None:
        self._container, stream = open_video(self._path, self._span)
        self._stream, self._aspects = stream, Aspects(stream)
        self.stream = stream.index if len(self._container.streams.video) > 1 else None
        self.hidden = margins(self._container, stream)
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 30)
        self._last: Fraction | None = None
        self._matrix: Matrix | None = None
        #: Whether a key frame has come. Recordings may begin behind one.
        self._keyed = False
        #: Time stamp of the last packet, whether it is only a part, and its time for decoding.
        self._packet: tuple[int | None, bool] = None, False
        self._decoding: int | None = None
        #: The latest time stamps of packets and of frames, and that of a frame cut in two.
        self._due: int | None = None
        self._came: int | None = None
        self._cut: int | None = None
        # AVI keeps no time stamps: those of reordered frames are guesses.
        dated = stream.start_time is not None and self._container.format.name != "avi"
        self._origin: int | None = stream.start_time if dated else None
        self._can_seek = dated

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def look_at_the_end(self) -> None:
        """Add to ``problems`` that packets gave no frames, once all have come."""
        if self.problems or not self._can_seek or self._due is None or self._came is None:
            return
        lacks = (self._due - self._came) * Fraction(self._stream.time_base)
        # The second field of an interlaced frame may be a packet of its own.
        if lacks > max(Fraction(3, 4) / self.rate, _FIELD) + TOLERANCE:
            self.problems.append(f"the last {float(lacks):.3g} s give no frame")

    @property
    def end(self) -> Fraction:
        """When the last decoded frame ends, in seconds from the video's beginning."""
        last = self._span.last
        end = self._end if last is None else min(self._end, last)
        return max(Fraction(0), self._steady(end - self._span.first))

    def time_of(self, pts: int) -> Fraction:
        """When the frame with a time stamp is shown."""
        return self._steady(self._time_in_file(pts) - self._span.first)

    def _steady(self, time: Fraction) -> Fraction:
        """A time of the video as it was before it was rounded, where frames have a steady rate."""
        rate = self._span.rate
        return Fraction(round(time * exact(rate))) / exact(rate) if rate else time

    def _time_in_file(self, pts: int) -> Fraction:
        return (pts - (self._origin or 0)) * Fraction(self._stream.time_base)

    def frames_from(self, moment: Fraction) -> Iterator[Shown]:
        """Frames from the one that is shown at ``moment`` on: the same with and without a seek.

        Nothing where the video ends before; its first frame where it begins later.
        """
        span = self._span
        first, last, slack = span.first, span.last, span.slack
        if span.rate:
            # Of frames that begin near to where they should, the one that does so then or before.
            rate = exact(span.rate)
            moment = math.floor((moment + TOLERANCE) * rate) / rate + slack / 2
        for shown in self._frames_of_file(first + moment):
            if shown.time < first - slack:
                continue  # of the video before this one in the file
            if last is not None and shown.time >= last - slack:
                self.complete = True
                return
            time = self._steady(shown.time - first)
            if span.rate:
                end = time + 1 / exact(span.rate)
            else:
                end = (shown.end if last is None else min(shown.end, last)) - first
            yield replace(shown, time=max(time, Fraction(0)) if first else time, end=end)
        self.complete = last is not None and self._end >= last - slack

    def _frames_of_file(self, moment: Fraction) -> Iterator[Shown]:
        """The same of the whole file, in its own seconds."""
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
        if waiting is not None and self._end > moment + TOLERANCE:
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
        """Open the file again: frames come from the beginning again."""
        self._container.close()
        self.problems.clear()
        self._open()

    def _timed(self) -> Iterator[Shown]:
        self._last = self._matrix = None
        before: Shown | None = None
        for frame in self._decoded():
            self._tick()
            shown = self._at(frame)
            if self.problems and before and not self._follows(shown, before):
                self._end = before.end
                return
            yield shown
            before = shown

    def _follows(self, shown: Shown, before: Shown) -> bool:
        """Whether a frame that a decoder held back when its data was cut is complete and next."""
        is_part = shown.pts is not None and shown.pts == self._cut
        return not is_part and shown.time <= before.end + TOLERANCE

    def _at(self, frame: av.VideoFrame) -> Shown:
        pts, aspect = frame.pts, self._aspects.of(frame)
        if pts is not None:
            self._came = pts if self._came is None else max(pts, self._came)
            if self._origin is None:
                self._origin = pts
        time = self._time_in_file(pts) if pts is not None else None
        length = self._length(frame)
        if time is None or (self._last is not None and time <= self._last):
            # Without a time, or before the frame that came before: as if at a steady rate.
            pts, time = None, Fraction(0) if self._last is None else self._last + 1 / self.rate
            length = 1 / self.rate
        self._last, self._end = time, time + length
        # What a frame says of its orientation, not the container, holds until the next key frame.
        own = matrix_of(frame)
        self._matrix = own if own or frame.key_frame else self._matrix
        return Shown(frame, time, self._end, pts, aspect, self._matrix)

    def _length(self, frame: av.VideoFrame) -> Fraction:
        """Seconds for which a frame is shown: its own where it has one, or one at a steady rate."""
        steady = 1 / self.rate
        own = Fraction((frame.duration or 0) * self._stream.time_base)
        # Containers round times: a millisecond more or less is no other length.
        return own if own > 0 and abs(own - steady) > TOLERANCE else steady

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Frames up to the first damage, which is added to ``problems``."""
        try:
            for packet in self._packets():
                if packet.size:
                    self._note(packet)
                else:
                    self._look_for_a_cut()
                for frame in self._decode(packet):
                    if frame.is_corrupt:
                        self.problems.append("a damaged frame")
                        return
                    yield frame
        except av.error.FFmpegError as e:
            # A damaged packet may ask for any amount of memory.
            if e.errno != errno.ENOMEM and cannot_read(self._path, e):
                raise
            self.problems.append(e.strerror or str(e))
            # The good frames before it that the decoder still holds back.
            with contextlib.suppress(av.error.FFmpegError):
                yield from self._stream.decode(None)

    def _packets(self) -> Iterator[av.Packet]:
        """Packets up to the end of the file, then an empty one."""
        for left in range(_HOLES, -1, -1):
            try:
                yield from self._container.demux(self._stream)
                return
            except av.error.BlockingIOError:
                # FFmpeg has skipped bytes that are no packets, and looks for more behind them.
                if not left:
                    raise

    def _decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        """Frames of a packet; none of those that a stream lacks the key frame of."""
        self._keyed = self._keyed or packet.is_keyframe or not packet.size
        try:
            return self._aspects.decode(packet)
        except av.error.InvalidDataError:
            if self._keyed:
                raise
            return []

    def _note(self, packet: av.Packet) -> None:
        """Remember of a packet what tells later whether all that should come has come."""
        self._packet = packet.pts, packet.is_corrupt
        if packet.dts is not None:
            self._decoding = packet.dts
        # An edit list may hide what follows its end; it is decoded nevertheless.
        if packet.pts is not None and not packet.is_discard and packet.size > _STAYS:
            self._due = packet.pts if self._due is None else max(packet.pts, self._due)

    def _look_for_a_cut(self) -> None:
        """Add to ``problems`` that the file is cut, when all its packets have come."""
        pts, is_part = self._packet
        if is_part:
            self.problems.append("the file ends within a frame")
        elif ends.is_cut(self._path, self._container, self._stream, self._decoding, self._span):
            self.problems.append("the file ends, or is damaged, before frames that should follow")
            is_part = self._container.format.name == "mpegts"
        self._cut = pts if is_part else None


#: av.video.frame.PictureType.I
_INTRA = 1


def _chain(first: Shown, rest: Iterator[Shown]) -> Iterator[Shown]:
    yield first
    yield from rest
