"""From a video file to the pixels of clips, decoding no more than the clips need; without torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_hpc.utils.progress import Stopwatch
from cosmos_hpc.worker.video.frames import Shown, Video
from cosmos_hpc.worker.video.pictures import Look, Painter, fit
from cosmos_hpc.worker.video.problems import VideoError, reading
from cosmos_hpc.worker.video.spans import TOLERANCE, WHOLE, Span, exact
from cosmos_hpc.worker.video.stored_pictures import StoredPictures

__all__ = ["Clip", "Cut", "VideoError", "fit", "read_clip", "read_clips"]

#: What gives the frames of a video.
Frames = Video | StoredPictures
#: Seconds for which one frame may stand still; a longer gap is a damaged time stamp.
_LONGEST_STILL = 3600
_HOURS_AWAY = "a time stamp that is hours away"


@dataclass(frozen=True)
class Cut:
    """Which clips of a video are wanted.

    Attributes:
        frames, height, width: of a clip.
        every: all clips of a video instead of one.
        start: seconds at which the first one begins.
        frame_rate: frames per second; None takes every frame of the video.
        stride: frames between the beginnings of two clips; None: as many as a clip has.
        pad: a video that holds no complete clip is filled with its last frame.
    """

    frames: int
    height: int
    width: int
    every: bool = False
    start: float = 0.0
    frame_rate: float | None = None
    stride: int | None = None
    pad: bool = True

    @property
    def step(self) -> int:
        """Frames between the beginnings of two clips."""
        return self.stride or self.frames

    def moment(self, index: int) -> Fraction:
        """When the frame of an index, counted from ``start``, is shown, at ``frame_rate``."""
        return exact(self.start) + index / exact(self.frame_rate or 1)


@dataclass(frozen=True)
class Clip:
    """Frames of a clip and how they were prepared.

    Attributes:
        pixels: uint8 ``[3, T, H, W]``, RGB.
        number: of the clip in its video, from 0.
        time: at which it begins, in seconds from the beginning of the video.
        seconds: its length without what is padded.
        padded: frames at the end that repeat the last one.
        look: what was done to its first frame.
        changed: frames to which something else was done than to the first.
        stream: number of the stream in the file, where it has several with pictures.
        mark: time stamp of its first frame in the file, from which a later reader can resume.
    """

    pixels: np.ndarray
    number: int
    time: float
    seconds: float
    padded: int
    look: Look
    changed: int = 0
    stream: int | None = None
    mark: int | None = None

    @property
    def rotated(self) -> int:
        """Degrees counter-clockwise by which the first frame was turned, as the file asks for."""
        return self.look.rotated

    @property
    def notes(self) -> dict[str, Any]:
        """Fields of the clip in a table besides its times; only unusual values."""
        notes = dict(self.look.notes)
        if self.changed:
            notes["changed"] = self.changed
        if self.stream is not None:
            notes["stream"] = self.stream
        return notes


def read_clip(
    path: Path,
    frames: int,
    height: int,
    width: int,
    pad: bool = True,
    clock: Stopwatch | None = None,
) -> Clip:
    """The first ``frames`` frames of a video, upright, resized and cropped to the clip.

    Args:
        pad: repeat the last frame of a shorter video; otherwise it is an error.
        clock: accumulates the time spent in ``decode`` and ``resize``.

    Raises:
        VideoError: the file holds no such clip; the message says why.
        OSError: the machine cannot read now, whatever the file holds.
    """
    return next(read_clips(path, Cut(frames, height, width, pad=pad), clock=clock))


def read_clips(
    path: Path,
    cut: Cut,
    begin: int = 0,
    mark: int | None = None,
    place: Callable[[], np.ndarray] | None = None,
    clock: Stopwatch | None = None,
    tick: Callable[[], None] | None = None,
    span: Span = WHOLE,
) -> Iterator[Clip]:
    """The clips of a video in order, each read when it is asked for.

    Frames are turned and mirrored as the file asks, resized, keeping the aspect with which they are
    shown, until both sides cover the clip (bilinear, widened to what is left out), then cropped to
    its centre. A remainder shorter than a clip is left out, unless the video has no clip.

    Args:
        begin: number of the first clip to give.
        mark: of the clip before that; spares decoding what lies before it.
        place: gives the array to fill with the next clip, uint8 ``[3, T, H, W]``.
        clock: accumulates the time spent in ``decode`` and ``resize``.
        tick: called for every decoded frame.
        span: the part of the file that is the video.

    Raises:
        VideoError: the video holds no clip, or is damaged after those already given; the message
            says why.
        OSError: the machine cannot read now, whatever the file holds.
    """
    if begin and not cut.every:
        return
    shape = (3, cut.frames, cut.height, cut.width)
    place = place or (lambda: np.empty(shape, np.uint8))
    kind = StoredPictures if span.column else Video
    with reading(path), kind(path, tick, span) as video:
        maker = _Maker(cut, begin, video, place, clock or Stopwatch())
        yield from maker.clips(sampled(video, cut, begin, mark))
        if not cut.every and maker.number:
            return
        _check_the_end(video, cut, maker, span)
        if not maker.number:
            yield maker.padded()


def sampled(video: Frames, cut: Cut, begin: int = 0, mark: int | None = None) -> Iterator[Shown]:
    """Frames at the wanted rate from the beginning of clip ``begin`` on."""
    if cut.frame_rate is not None:
        return _resampled(video, cut, begin * cut.step)
    if begin and mark is not None:
        frames = video.frames_from(video.time_of(mark))
        first = next(frames, None)
        if first is not None and first.pts == mark:
            return itertools.islice(frames, cut.step - 1, None)
        video.restart()
    frames = video.frames_from(cut.moment(0))
    return itertools.islice(frames, begin * cut.step, None)


def _resampled(video: Frames, cut: Cut, index: int) -> Iterator[Shown]:
    """At each moment of ``cut.frame_rate``, the frame that is shown then."""

    def sample(shown: Shown) -> Shown:
        return replace(shown, time=cut.moment(index), end=cut.moment(index + 1))

    current: Shown | None = None
    for shown in video.frames_from(cut.moment(index)):
        if current is not None:
            if shown.time - current.time > _LONGEST_STILL:
                video.problems.append(_HOURS_AWAY)
                break
            while cut.moment(index) + TOLERANCE < shown.time:
                yield sample(current)
                index += 1
        current = shown
    if current is not None and current.end - current.time > _LONGEST_STILL:
        video.problems.append(_HOURS_AWAY)
        return
    while current is not None and cut.moment(index) + TOLERANCE < current.end:
        yield sample(current)
        index += 1


def _check_the_end(video: Frames, cut: Cut, maker: _Maker, span: Span) -> None:
    """Refuse a video that ends before its time, or too early for a clip."""
    end = float(video.end)
    if not video.complete:
        # What lies after the end of a span does not matter.
        video.look_at_the_end()
    if video.problems and not video.complete:
        clips = f", of which {maker.number} clips are kept" if maker.number else ""
        reason = f"{end:.3g} s decode{clips}, then: {video.problems[0]}"
        raise VideoError("truncated", f"truncated or damaged: {reason}")
    if span.frames is not None and span.rate and end:
        shown = round(end * span.rate)
        if shown != span.frames:
            raise VideoError("length", f"{span.frames} frames are described, the video has {shown}")
    if maker.number:
        return
    if not maker.found and span.start and not end:
        raise VideoError("short", f"the file ends before {span.start:g} s, where it begins")
    if not maker.found and cut.start and end:
        raise VideoError("short", f"it ends at {end:.3g} s, before data.start={cut.start:g}")
    if not maker.found:
        raise VideoError("unreadable", "the video holds no frame")
    if not cut.pad:
        raise VideoError("short", f"{maker.found} frames, a clip needs {cut.frames}")


class _Maker:
    """Fits samples into clips.

    Attributes:
        number: of the next clip.
    """

    def __init__(
        self,
        cut: Cut,
        number: int,
        video: Frames,
        place: Callable[[], np.ndarray],
        clock: Stopwatch,
    ) -> None:
        self.number = number
        self._cut, self._place, self._clock = cut, place, clock
        self._painter, self._stream = Painter(video.hidden), video.stream
        self._buffer = np.empty(0, np.uint8)
        #: Of the buffered frames, of an incomplete clip: times, time stamps, and how they were
        #: prepared.
        self._times: list[tuple[Fraction, Fraction]] = []
        self._marks: list[int | None] = []
        self._looks: list[Look] = []

    @property
    def found(self) -> int:
        """Number of buffered frames."""
        return len(self._times)

    def clips(self, samples: Iterator[Shown]) -> Iterator[Clip]:
        """Complete clips; common frames of overlapping ones are copied."""
        cut, kept, last = self._cut, None, None
        samples = iter(samples)
        self._clock.lap("wait")
        for shown in samples:
            self._clock.lap("decode")
            if not self.found or kept is not None:
                self._buffer = self._place()
                if kept is not None:
                    self._buffer[:, : self.found] = kept
                    kept = None
                self._clock.lap("wait")
            target = self._buffer[:, self.found]
            if self.found and shown.frame is last:
                target[:] = self._buffer[:, self.found - 1]
                self._looks.append(self._looks[-1])
            else:
                self._looks.append(self._painter.draw(shown, target))
            last = shown.frame
            self._times.append((shown.time, shown.end))
            self._marks.append(shown.pts)
            self._clock.lap("resize")
            if self.found < cut.frames:
                continue
            clip = self._clip(0)
            if cut.step < cut.frames:
                kept = self._buffer[:, cut.step :].copy()
            del self._times[: cut.step], self._marks[: cut.step], self._looks[: cut.step]
            yield clip
            if not cut.every:
                return
            # What lies between two clips; asked for only now that the next one is wanted.
            next(itertools.islice(samples, gap := max(0, cut.step - cut.frames), gap), None)
            self._clock.lap("wait")

    def padded(self) -> Clip:
        """The buffered frames, and the last of them repeated."""
        missing = self._cut.frames - self.found
        self._buffer[:, self.found :] = self._buffer[:, self.found - 1, None]
        return self._clip(missing)

    def _clip(self, padded: int) -> Clip:
        begin, end = self._times[0][0], self._times[-1][1]
        self.number += 1
        return Clip(
            pixels=self._buffer,
            number=self.number - 1,
            time=round(float(begin), 6),
            seconds=round(float(end - begin), 6),
            padded=padded,
            look=self._looks[0],
            changed=sum(look != self._looks[0] for look in self._looks[: self._cut.frames]),
            stream=self._stream,
            mark=self._marks[0],
        )
