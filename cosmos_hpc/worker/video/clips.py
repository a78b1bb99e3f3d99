"""From a video file to the pixels of clips, decoding no more than the clips need; without torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from cosmos_hpc.utils.progress import Stopwatch
from cosmos_hpc.worker.video.frames import MAX_PIXELS, TOLERANCE, Shown, Video, VideoError, reading

__all__ = ["Clip", "Cut", "VideoError", "read_clip", "read_clips"]

#: Antialiased when it makes smaller, and the same on every processor.
_SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
#: Seconds for which one frame may stand still; a longer gap is a damaged time stamp.
_LONGEST_STILL = 3600


@dataclass(frozen=True)
class Cut:
    """Which clips of a video are wanted.

    Attributes:
        frames, height, width: of a clip.
        every: all clips of a video instead of one.
        start: seconds at which the first one begins.
        frame_rate: frames a second; None takes every frame of the video.
        stride: frames between the beginnings of two clips; None: as many as a clip has.
        pad: a video that holds no whole clip is filled with its last frame.
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
        rate = Fraction(self.frame_rate or 1).limit_denominator(1_000_000)
        return Fraction(self.start).limit_denominator(1_000_000) + index / rate


@dataclass(frozen=True)
class Clip:
    """Frames of a clip and how they came about.

    Attributes:
        pixels: uint8 ``[3, T, H, W]``, RGB.
        number: of the clip in its video, from 0.
        time: at which it begins, in seconds from the beginning of the video.
        seconds: its length without what is padded.
        padded: frames at the end that repeat the last one.
        rotated: degrees counter-clockwise by which the frames were turned, as the file asks for.
        mark: time stamp of its first frame in the file, from which a later reader can go on.
    """

    pixels: np.ndarray
    number: int
    time: float
    seconds: float
    padded: int
    rotated: int
    mark: int | None = None


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
        clock: is told the time spent in ``decode`` and ``resize``.

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
) -> Iterator[Clip]:
    """The clips of a video in order, each read when it is asked for.

    Frames are resized, keeping their aspect, until both sides cover the clip (bilinear, widened to
    what is left out), then cropped to its centre. A remainder shorter than a clip is left out,
    unless the video holds no whole clip.

    Args:
        begin: number of the first clip to give.
        mark: of the clip before that; spares decoding what lies before it.
        place: gives the array to fill with the next clip, uint8 ``[3, T, H, W]``.
        clock: is told the time spent in ``decode`` and ``resize``.
        tick: is called for every frame that is decoded.

    Raises:
        VideoError: the video holds no clip, or is damaged behind those already given; the message
            says why.
        OSError: the machine cannot read now, whatever the file holds.
    """
    if begin and not cut.every:
        return
    shape = (3, cut.frames, cut.height, cut.width)
    maker = _Maker(cut, begin, place or (lambda: np.empty(shape, np.uint8)), clock or Stopwatch())
    with reading(path), Video(path, tick) as video:
        yield from maker.clips(_samples(video, cut, begin, mark))
        if not cut.every and maker.number:
            return
        _check_the_end(video, cut, maker)
        if not maker.number:
            yield maker.padded()


def _samples(video: Video, cut: Cut, begin: int, mark: int | None) -> Iterator[Shown]:
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


def _resampled(video: Video, cut: Cut, index: int) -> Iterator[Shown]:
    """At each moment of ``cut.frame_rate``, the frame that is shown then."""

    def sample(shown: Shown) -> Shown:
        return Shown(shown.frame, cut.moment(index), cut.moment(index + 1), shown.pts)

    current: Shown | None = None
    for shown in video.frames_from(cut.moment(index)):
        if current is not None:
            if shown.time - current.time > _LONGEST_STILL:
                video.problems.append("a time stamp that is hours away")
                break
            while cut.moment(index) + TOLERANCE < shown.time:
                yield sample(current)
                index += 1
        current = shown
    while current is not None and cut.moment(index) + TOLERANCE < current.end:
        yield sample(current)
        index += 1


def _check_the_end(video: Video, cut: Cut, maker: _Maker) -> None:
    """Refuse a video that ends before its time, or too early for a clip."""
    end = float(video.end)
    declared = video.declared_end()
    if not video.problems and declared > video.end + max(1 / video.rate, declared / 10):
        video.problems.append(f"the header says {float(declared):.3g} s")
    if video.problems:
        clips = f", of which {maker.number} clips are kept" if maker.number else ""
        reason = f"{end:.3g} s decode{clips}, then: {video.problems[0]}"
        raise VideoError("truncated", f"truncated or damaged: {reason}")
    if maker.number:
        return
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
        self, cut: Cut, number: int, place: Callable[[], np.ndarray], clock: Stopwatch
    ) -> None:
        self.number = number
        self._cut, self._place, self._clock = cut, place, clock
        self._scaler = VideoReformatter()
        self._buffer = np.empty(0, np.uint8)
        self._rotated = 0
        #: Times and time stamps of the frames in hand, of a clip that is not whole yet.
        self._times: list[tuple[Fraction, Fraction]] = []
        self._marks: list[int | None] = []

    @property
    def found(self) -> int:
        """Frames in hand."""
        return len(self._times)

    def clips(self, samples: Iterator[Shown]) -> Iterator[Clip]:
        """Whole clips; of overlapping ones the common frames are copied."""
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
            else:
                self._rotated = fit(self._scaler, shown.frame, target)
            last = shown.frame
            self._times.append((shown.time, shown.end))
            self._marks.append(shown.pts)
            self._clock.lap("resize")
            if self.found < cut.frames:
                continue
            clip = self._clip(0)
            if cut.step < cut.frames:
                kept = self._buffer[:, cut.step :].copy()
            del self._times[: cut.step], self._marks[: cut.step]
            yield clip
            if not cut.every:
                return
            # What lies between two clips; asked for only now that the next one is wanted.
            next(itertools.islice(samples, gap := max(0, cut.step - cut.frames), gap), None)
            self._clock.lap("wait")

    def padded(self) -> Clip:
        """The frames in hand and the last one of them again and again."""
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
            rotated=self._rotated,
            mark=self._marks[0],
        )


def fit(scaler: VideoReformatter, frame: av.VideoFrame, target: np.ndarray) -> int:
    """Draw a frame, upright, resized to cover and cropped, into uint8 ``[3, H, W]``, RGB.

    Colours are converted and the size changed in one step.

    Returns:
        Degrees counter-clockwise by which the frame was turned.

    Raises:
        VideoError: the picture is so long and narrow that it cannot cover the clip.
    """
    rotated = round((frame.rotation or 0) / 90) * 90 % 360
    turned = rotated % 180 != 0
    height, width = target.shape[1:]
    rows, columns = (frame.width, frame.height) if turned else (frame.height, frame.width)
    # In integers, so that a side which fits exactly is not rounded up.
    if width * rows >= height * columns:
        size = (math.ceil(rows * width / columns), width)
    else:
        size = (height, math.ceil(columns * height / rows))
    if size[0] * size[1] > MAX_PIXELS:
        raise VideoError("too_large", f"a picture of {columns}x{rows} cannot cover a clip")
    picture = scaler.reformat(
        frame,
        width=size[0] if turned else size[1],
        height=size[1] if turned else size[0],
        format="gbrp",
        interpolation=_SCALING,
        threads=1,
    )
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    for channel, plane in enumerate((2, 0, 1)):  # of green, blue, red
        upright = np.rot90(_plane(picture.planes[plane]), rotated // 90)
        target[channel] = upright[top : top + height, left : left + width]
    return rotated


def _plane(plane: av.video.plane.VideoPlane) -> np.ndarray:
    pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return pixels[: plane.height, : plane.width]
