"""Folders in the Bridge layout with generated clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.worker import make_videos


def annotation(
    frames: int, text: str = "put the pot on the cloth", seed: int = 0
) -> dict[str, Any]:
    """What the robot did in a clip of so many frames."""
    random = np.random.default_rng(seed)
    return {
        "texts": [text],
        "action": random.normal(size=(frames - 1, 7)).tolist(),
        "state": random.normal(size=(frames, 7)).tolist(),
        "continuous_gripper_state": random.random(frames).tolist(),
    }


def write_clip(folder: Path, part: str, clip: str, frames: int, **changes: Any) -> None:
    """A clip; ``changes`` replace parts of its annotation."""
    video = folder / "videos" / part / clip
    video.mkdir(parents=True)
    make_videos.write(video / "rgb.mp4", make_videos.frames(frames, 96, 128, seed=int(clip)))
    path = folder / "annotation" / part / f"{clip}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {**annotation(frames, f"move {int(clip) % 3} to the pot", int(clip)), **changes}
    path.write_text(json.dumps(text))


def write_bridge(folder: Path, parts: dict[str, int]) -> Path:
    """So many clips in each part, of 3 to 6 frames."""
    number = 0
    for part, count in parts.items():
        for _ in range(count):
            number += 1
            write_clip(folder, part, str(number * 7), 3 + number % 4)
    return folder


def remove_video(folder: Path, part: str, clip: str) -> None:
    """Leave the annotation alone."""
    shutil.rmtree(folder / "videos" / part / clip)
