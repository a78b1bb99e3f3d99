"""Makes videos of drifting lights: something to try the package with, on any machine.

Their motion is one that the smallest model learns within minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from cosmos_hpc.utils.annotations import NonNegativeInt, PositiveInt
from cosmos_hpc.utils.settings import Section
from cosmos_hpc.worker.video.writer import write_frames


class SampleVideos(Section, frozen=True, kw_only=True):
    """What to make.

    Attributes:
        count: videos.
        frames, rate: of each, and frames per second.
        height, width: in pixels, even and at least 16.
        seed: of the scenes.
    """

    count: PositiveInt = 8
    frames: PositiveInt = 33
    height: Annotated[int, Meta(ge=16, multiple_of=2)] = 240
    width: Annotated[int, Meta(ge=16, multiple_of=2)] = 400
    rate: PositiveInt = 30
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class _Scenery:
    """What scenes look like: colours in RGB from dark to light, and where their light drifts to.

    Rows and columns are those of a grid of 6x10 over the picture, whatever its size.
    """

    dark: tuple[int, int, int]
    light: tuple[int, int, int]
    down: int = 0
    right: int = 0


_SCENERIES = (
    _Scenery((30, 50, 140), (240, 240, 230), right=1),  # clouds
    _Scenery((80, 20, 70), (250, 210, 110), down=1),  # a sunset
    _Scenery((10, 60, 70), (210, 240, 160), right=-1),  # a lagoon
    _Scenery((40, 30, 110), (240, 180, 220), down=-1),  # northern lights
)
_ROWS, _COLUMNS = 6, 10
#: Rows and columns from one light to the next, and those that they pass in eight frames: the models
#: see eight frames as one, so that motion has to show between one eight and the next.
_PERIOD = (6, 5)
_PACE = 2
#: A picture is darker towards its lower right corner, up to this share: a place tells itself from
#: the others, also within a period.
_SHADE = 0.35


def _grain(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of fine scales that wraps round, ``[height, width]``, with a deviation of 1."""
    waves = np.hypot(
        np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width)[None] * width * 0.6
    )
    fine = (waves > 2 * _ROWS) & (waves < 4 * _ROWS)
    noise: np.ndarray = np.fft.ifft2(np.fft.fft2(random.standard_normal((height, width))) * fine)
    return noise.real / max(float(noise.real.std()), 1e-6)


def _scene(random: np.random.Generator, samples: SampleVideos) -> np.ndarray:
    """Frames uint8 ``[T, H, W, 3]``: soft lights on a shaded ground drift one way, at an even pace.

    A scene starts at one of the few places of a grid, so that few different blocks make up all
    videos: a small model learns from minutes of training how they follow each other.
    """
    height, width = samples.height, samples.width
    scenery = _SCENERIES[random.integers(len(_SCENERIES))]
    start = random.integers(_PERIOD) * (scenery.down != 0, scenery.right != 0)
    grain = _grain(random, height, width)
    y = (np.arange(height) + 0.5) / height * _ROWS
    x = (np.arange(width) + 0.5) / width * _COLUMNS
    shade = 1 - _SHADE * (0.45 * y[:, None] / _ROWS + 0.55 * x / _COLUMNS)
    dark, light = np.array(scenery.dark), np.array(scenery.light)
    frames = []
    for t in range(samples.frames):
        moved = np.array([scenery.down, scenery.right]) * _PACE * t / 8
        rows, columns = (
            np.cos(2 * np.pi * (place - begin) / period)
            for place, begin, period in zip((y, x), start + moved, _PERIOD, strict=True)
        )
        bright = 0.5 + 0.225 * rows[:, None] + 0.275 * columns
        pixels = np.round(moved * (height / _ROWS, width / _COLUMNS)).astype(int)
        picture = (dark + (light - dark) * bright[..., None]) * shade[..., None]
        picture += np.roll(grain, pixels, (0, 1))[..., None]
        frames.append(picture.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def make_sample_videos(folder: str | Path, samples: SampleVideos) -> None:
    """Write ``samples.count`` videos into ``folder``; the same settings give the same scenes."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for number in range(samples.count):
        random = np.random.default_rng([samples.seed, number])
        scene = _scene(random, samples).transpose(3, 0, 1, 2)
        write_frames(target / f"scene-{number:04d}.mp4", scene, samples.rate)
