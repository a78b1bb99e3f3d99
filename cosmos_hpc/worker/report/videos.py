"""Videos and pictures for the report: small enough, and embedded in the page."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import Interpolation

from cosmos_hpc.runs.samples import Sample, Samples
from cosmos_hpc.utils.html import data_uri

#: Sides of a video, in pixels, that are tried one after the other until it is small enough, and
#: the quality of each: H.264's constant rate factor, where less is better.
_ATTEMPTS = ((512, 23), (384, 27), (256, 30), (160, 34))
#: Frames of a video that are shown.
MAX_FRAMES = 240
#: Frames a second at most; none of the recipes' videos has more.
_MAX_RATE = 120


@dataclass(frozen=True)
class Shown:
    """A video of the page.

    Attributes:
        name: what it shows.
        kind: ``truth``, ``trained``, ``initial`` or ``tokenizer``.
        uri: the video itself; empty where it cannot be shown.
        problem: why it is not.
        poster: its first frame that is not given, or its first, as a picture.
        width, height: in pixels, as shown.
        frames: that are shown, of ``of`` that there are.
        rate: frames per second.
    """

    name: str
    kind: str
    uri: str = ""
    problem: str = ""
    poster: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0
    of: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class Clip:
    """The videos of a clip, side by side.

    Attributes:
        number: of the clip.
        first: record of its first sample.
        given: the last of the given frames, as a picture; empty where it cannot be shown.
        videos: the truth first.
        left_out: samples that are not among them.
    """

    number: int
    first: Sample
    given: str
    videos: list[Shown]
    left_out: int

    @property
    def bytes(self) -> int:
        """Of the page that it takes."""
        return len(self.given) + sum(len(v.uri) + len(v.poster) for v in self.videos)


def show(samples: Samples, budget: int, most: int = 12) -> list[Clip]:
    """As many clips as the page has room for, evenly spaced over all of them.

    Args:
        samples: of the run.
        budget: bytes of the page that they may take together.
        most: clips.
    """
    clips = samples.clips()
    chosen = evenly_spaced(list(clips), most)
    shown: list[Clip] = []
    for left, number in zip(range(len(chosen), 0, -1), chosen, strict=True):
        clip = _show(samples, clips[number], budget // left)
        if clip.bytes <= budget:
            budget -= clip.bytes
            shown.append(clip)
    return shown


def evenly_spaced(items: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the items, from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // max(1, most - 1)] for i in range(most)]


#: Samples of one clip that are shown, by each of the weights.
_SAMPLES = {"trained": 3, "initial": 1}


@dataclass(frozen=True)
class _Opened:
    """The first of a file's ``of`` frames, not larger than they are shown, and their rate.

    ``is_ready`` says whether the page can take the file as it is.
    """

    frames: list[av.VideoFrame]
    of: int
    rate: Fraction
    is_ready: bool


def _show(samples: Samples, of_clip: list[Sample], budget: int) -> Clip:
    number = of_clip[0].clip
    files = [("truth", "truth", samples.truth(number))]
    for weights, most in _SAMPLES.items():
        by_these = [sample for sample in of_clip if sample.record["weights"] == weights]
        files += [(sample.by, weights, sample.path) for sample in by_these[:most]]
    files += [("tokenizer alone", "tokenizer", samples.tokenizer(number))]
    optional = ("truth", "tokenizer")
    present = [file for file in files if file[1] not in optional or file[2].exists()]
    first_new = int(of_clip[0].record.get("condition_frames") or 0)
    each = budget // (len(present) + 1)
    videos, given = [], ""
    for name, kind, path in present:
        try:
            opened = _open(path)
        except (av.error.FFmpegError, OSError, ValueError, IndexError) as e:
            reason = getattr(e, "strerror", None) or str(e)
            videos.append(Shown(name, kind, problem=reason))
            continue
        videos.append(_fit(name, kind, path, opened, first_new, each))
        if not given and first_new:
            given = _picture(opened.frames[min(first_new, len(opened.frames)) - 1], 384)
    shown = sum(kind in _SAMPLES for _, kind, _ in present)
    given = given if len(given) <= each else ""
    return Clip(number, of_clip[0], given, videos, len(of_clip) - shown)


def _fit(name: str, kind: str, path: Path, opened: _Opened, first_new: int, budget: int) -> Shown:
    """A video at the best quality that its part of the page has room for."""
    frames = opened.frames
    for side, quality in _ATTEMPTS:
        height, width = _size(frames[0], side)
        poster = _picture(frames[min(first_new, len(frames) - 1)], min(side, 384))
        if opened.is_ready and side == _ATTEMPTS[0][0]:
            data = path.read_bytes()
        else:
            data = _encode(frames, opened.rate, side, quality)
        uri = data_uri(data, "video/mp4")
        if len(uri) + len(poster) <= budget:
            told = (len(frames), opened.of, float(opened.rate))
            return Shown(name, kind, uri, "", poster, width, height, *told)
    return Shown(name, kind, problem="too large for this page")


def _open(path: Path) -> _Opened:
    """Decode a video.

    Raises:
        OSError: there is no such file.
        ValueError, IndexError: there is no frame, or no video, in it.
    """
    frames: list[av.VideoFrame] = []
    total, largest = 0, _ATTEMPTS[0][0]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or stream.guessed_rate or 30)
        form = stream.codec_context.name, stream.codec_context.pix_fmt
        side = max(stream.height, stream.width)
        for frame in container.decode(stream):
            total += 1
            if total <= MAX_FRAMES:
                # Not as large as they are: all of them have to stay in memory.
                frames.append(smaller(frame, largest))
    if not frames:
        raise ValueError("a video without frames")
    plays = form == ("h264", "yuv420p") and path.suffix == ".mp4" and rate <= _MAX_RATE
    is_ready = plays and side <= largest and total <= MAX_FRAMES
    return _Opened(frames, total, min(rate, Fraction(_MAX_RATE)), is_ready)


def smaller(frame: av.VideoFrame, side: int) -> av.VideoFrame:
    """The frame with no side longer than ``side``, in pixels."""
    height, width = _size(frame, side)
    return frame.reformat(width, height, "yuv420p", interpolation=Interpolation.AREA)


def _size(frame: av.VideoFrame, side: int) -> tuple[int, int]:
    """Height and width, even, with no side longer than ``side``."""
    scale = min(1.0, side / max(frame.height, frame.width))
    height, width = (max(2, round(n * scale / 2) * 2) for n in (frame.height, frame.width))
    return height, width


def _encode(frames: Sequence[av.VideoFrame], rate: Fraction, side: int, quality: int) -> bytes:
    """H.264 in an mp4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        (stream.height, stream.width), stream.pix_fmt = _size(frames[0], side), "yuv420p"
        # Key frames a few frames apart: moving through the video by hand is quick.
        stream.options = {"crf": str(quality), "preset": "fast", "g": "12"}
        for index, frame in enumerate(frames):
            picture = smaller(frame, side)
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def _picture(frame: av.VideoFrame, side: int) -> str:
    return data_uri(jpeg(smaller(frame, side)), "image/jpeg")


def jpeg(frame: av.VideoFrame) -> bytes:
    """A frame as a JPEG file."""
    encoder = av.CodecContext.create("mjpeg", "w")
    picture = frame.reformat(format="yuvj420p")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.time_base = Fraction(1, 1)
    encoder.options = {"qmin": "3", "qmax": "8"}
    picture.pts = 0
    return b"".join(bytes(packet) for packet in _packets(encoder, picture))


def _packets(encoder: av.VideoCodecContext, picture: av.VideoFrame) -> Iterator[av.Packet]:
    yield from encoder.encode(picture)
    yield from encoder.encode(None)
