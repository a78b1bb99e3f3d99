"""Makes videos of moving, textured scenes: something to try the package with, on any machine."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import av
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from cosmos_hpc.utils.settings import Section


class Samples(Section):
    """What to make.

    Attributes:
        count: videos.
        frames, rate: of each, and frames a second.
        height, width: in pixels, even and at least 16.
        seed: of the scenes.
    """

    count: PositiveInt = 8
    frames: PositiveInt = 33
    height: Annotated[int, Field(ge=16, multiple_of=2)] = 240
    width: Annotated[int, Field(ge=16, multiple_of=2)] = 400
    rate: PositiveInt = 30
    seed: NonNegativeInt = 0


def _texture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth noise of several scales that wraps round, ``[height, width]`` in about [-1, 1]."""
    rows = np.fft.fftfreq(height)[:, None]
    columns = np.fft.fftfreq(width)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(random.standard_normal((height, width))) / frequency**1.5
    spectrum[0, 0] = 0.0
    noise = np.fft.ifft2(spectrum).real
    return noise / (3 * noise.std())


def _scene(random: np.random.Generator, samples: Samples) -> np.ndarray:
    """Frames uint8 ``[T, H, W, 3]``: a textured ground that drifts, and discs that cross it."""
    height, width = samples.height, samples.width
    ground = _texture(random, height, width)
    sky, earth = random.uniform(60, 200, (2, 3))
    speed = random.uniform(-4, 4, 2)
    y, x = np.mgrid[:height, :width]
    discs = [
        (
            random.uniform(0, [height, width]),
            random.uniform(-5, 5, 2),
            random.uniform(0.08, 0.2) * height,
            random.uniform(30, 230, 3),
        )
        for _ in range(3)
    ]
    frames = []
    for t in range(samples.frames):
        shift = np.round(speed * t).astype(int)
        light = np.roll(ground, shift, (0, 1))[..., None]
        fade = (y / height)[..., None]
        picture = (1 - fade) * sky + fade * earth + 50 * light
        for centre, velocity, radius, colour in discs:
            cy, cx = (centre + velocity * t) % [height, width]
            inside = np.hypot(y - cy, x - cx) < radius
            picture[inside] = colour + 25 * light[inside]
        frames.append(picture.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def write_video(path: Path, frames: np.ndarray, rate: int = 30) -> None:
    """Write uint8 RGB ``[T, H, W, 3]`` as an H.264 mp4, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    temporary.replace(path)


def make_sample_videos(folder: str | Path, samples: Samples) -> None:
    """Write ``samples.count`` videos into ``folder``; the same settings give the same scenes."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for number in range(samples.count):
        random = np.random.default_rng([samples.seed, number])
        write_video(target / f"scene-{number:04d}.mp4", _scene(random, samples), samples.rate)
