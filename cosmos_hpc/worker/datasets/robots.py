"""Robot clips as the files with which NVIDIA's guide trains action control.

Every frame of a clip is tokenized on its own. The files of a part hold its clips one after another,
one row per frame; the action of a clip's last frame is a row of NaN, so that no pair of frames
crosses from one clip to the next.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.bridge import AnnotationError
from cosmos_hpc.data.parts import FOLDERS
from cosmos_hpc.data.sources import source_of
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.documents import open_documents
from cosmos_hpc.worker.datasets.journal import Journal
from cosmos_hpc.worker.datasets.samples import split_documents
from cosmos_hpc.worker.datasets.shard import VideoShard
from cosmos_hpc.worker.video.clips import Clip, Cut, VideoError
from cosmos_hpc.worker.video.decoders import DecodeJob
from cosmos_hpc.worker.video.spans import TOLERANCE, exact

#: Of a part: one row per frame in each. State and gripper are there where the source has them.
FILES = ("tokenized-frames.pt", "actions.pt", "state.pt", "gripper.pt")
#: Columns of the table of clips that become the files after the first.
_ROBOT = ("action", "state", "gripper")


class RobotShard(VideoShard):
    """A shard of robot clips: every frame is a document.

    In its table a clip of T frames has one row, with T rows each of ``action`` (the last is null),
    and where the source has them ``state`` and ``gripper``. Only clips are kept whose videos have
    as many frames as their source says.
    """

    document = "frame"

    def __init__(self, run: RunFolder, recipe: Recipe, shard: int, journal: Journal) -> None:
        super().__init__(run, recipe, shard, journal)
        self.cut = dataclasses.replace(self.cut, every=True)
        assert recipe.model.action_width is not None
        self._width = recipe.model.action_width
        self._robots: dict[int, dict[str, Any]] = {}
        self._frames: dict[int, list[tuple[Clip, np.ndarray]]] = {}

    def _not_given_up(self) -> list[DecodeJob]:
        movements = source_of(str(self.root)).movements
        assert movements is not None
        for job in self._jobs:
            row = self._pinned[job.index]
            if "error" in row:
                continue
            try:
                robot = movements(self.root, row, self.data.action, self._width)
                self._robots[job.index] = self._resampled(robot, row.get("rate"))
            except AnnotationError as e:
                row.update(error=e.kind, reason=str(e))
            self._write_when_due()
        return super()._not_given_up()

    def _resampled(self, robot: dict[str, list[Any]], rate: float | None) -> dict[str, list[Any]]:
        """What goes with the frames that are taken at the wanted rate."""
        if self.data.frame_rate is None or rate is None:
            return robot
        taken = frames_at(len(robot["action"]), rate, self.cut)
        return {name: [rows[frame] for frame in taken] for name, rows in robot.items()}

    def _keep(self, index: int, clip: Clip, ids: np.ndarray) -> None:
        self._clips[index] += 1
        # More than there should be are only counted.
        if self._clips[index] <= self._frames_of(index):
            # Without its pixels, whose slot is filled again.
            bare = dataclasses.replace(clip, pixels=np.empty(0, np.uint8))
            self._frames.setdefault(index, []).append((bare, ids))

    def _frames_of(self, index: int) -> int:
        """How many frames the source describes."""
        robot = self._robots[index]
        # There is an action from each frame to the next, and in some sources one more.
        return len(robot["state"]) if "state" in robot else len(robot["action"])

    def _end(self, index: int, error: VideoError | AnnotationError | None) -> None:
        frames = self._frames_of(index) if index in self._robots else 0
        robot = self._robots.pop(index, None)
        found, kept = self._clips.pop(index, 0), self._frames.pop(index, [])
        if robot and error is None and found != frames:
            more = f"more than {frames}" if found > frames else found
            error = AnnotationError(
                "actions", f"{frames - 1} actions go with {frames} frames, and the video has {more}"
            )
        if robot is None or error is not None:
            return super()._end(index, error)
        clips, ids = zip(*kept, strict=True)
        end = clips[-1].time + clips[-1].seconds
        row = {
            **self._row(index),
            "last": True,
            "seconds": round(end - clips[0].time, 6),
            "padded": 0,
            "rotated": clips[-1].rotated,
            **_notes(clips),
            **robot,
            # The last frame has no next one.
            "action": [*robot["action"][: frames - 1], None],
        }
        self._rows.append((row, np.stack(ids)))


def frames_at(frames: int, rate: float, cut: Cut) -> list[int]:
    """The frames that are shown at the moments of a resampled video.

    Args:
        frames: of the video.
        rate: of them, a second.
        cut: with the ``frame_rate`` that is wanted.
    """
    taken: list[int] = []
    for index in itertools.count():
        frame = math.floor((cut.moment(index) + TOLERANCE) * exact(rate))
        if frame >= frames:
            return taken
        taken.append(frame)
    return taken


def _notes(clips: Sequence[Clip]) -> dict[str, Any]:
    """What was done to the frames of a clip, each of which is a clip of its own here."""
    notes = clips[-1].notes
    if changed := sum(clip.look != clips[-1].look for clip in clips):
        notes["changed"] = changed
    return notes


def write_robot_files(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Write a run's joined frames and what goes with them as one folder per part.

    Returns:
        What the stage's marker says of them.
    """
    pinned = files.read_jsonl(run.data.videos)
    clips: list[dict[str, Any]] = []
    sizes: dict[str, int] = {}
    for row in files.iterate_jsonl(run.tokens.clips):
        if row["clip"] == 0:
            own = {k: v for k, v in pinned[row["index"]].items() if k == "part"}
            clips.append({"document": len(clips), "video": row["video"], "frames": 0, **own})
        clips[-1]["frames"] += 1
        for name in _ROBOT:
            if name in row:
                size = len(row[name]) if isinstance(row[name], list) else 0
                sizes[name] = max(sizes.get(name, 0), size)
    parts = split_documents(clips, recipe.data.split)
    for part, chosen in parts.items():
        first = 0
        for number in chosen:
            clips[number].update(part=part, first=first)
            first += clips[number]["frames"]

    root = Path(run.data.folders()[0])
    scaled = source_of(str(root)).action_scale
    scale = scaled(root, recipe.data.action, recipe.data.normalize_action) if scaled else None
    final = run.tokens.samples
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for part, chosen in parts.items():
        if chosen:
            folder = temporary / FOLDERS[part]
            folder.mkdir(parents=True)
            _write_part(run, recipe, clips, sizes, part, folder, scale)
    for clip in clips:
        del clip["document"]
    files.write_jsonl(temporary / "clips.jsonl", clips)
    if scale:
        files.write_json(temporary / run.tokens.action_stats.name, scale)
    written = sorted(p for p in temporary.rglob("*") if p.is_file())
    sums = {f"samples/{p.relative_to(temporary)}": files.sha256(p) for p in written}
    files.publish(temporary, final)
    pairs = {
        FOLDERS[part]: sum(clips[number]["frames"] - 1 for number in chosen)
        for part, chosen in parts.items()
    }
    return {"pairs": pairs, "sha256": sums}


def _write_part(
    run: RunFolder,
    recipe: Recipe,
    clips: list[dict[str, Any]],
    sizes: dict[str, int],
    part: str,
    folder: Path,
    scale: dict[str, Any] | None,
) -> None:
    total = sum(clip["frames"] for clip in clips if clip["part"] == part)
    frames = torch.empty(total, *recipe.data.latent_shape, dtype=torch.int32)
    # NaN where there is no value: after the last action of a clip, and after short rows.
    robot = {
        name: torch.full((total, *([size] if size else [])), math.nan)
        for name, size in sizes.items()
    }
    ids = open_documents(str(run.tokens.prefix))
    number, at = -1, 0
    for row in files.iterate_jsonl(run.tokens.clips):
        number += row["clip"] == 0
        if clips[number]["part"] != part:
            continue
        frame = torch.from_numpy(ids[row["document"]].astype(np.int32))
        frames[at] = frame.view(recipe.data.latent_shape)
        for name, tensor in robot.items():
            value = row.get(name)
            if isinstance(value, list):
                tensor[at, : len(value)] = torch.tensor(value)
            elif value is not None:
                tensor[at] = value
        at += 1
    if scale:
        shift, by = torch.tensor(scale["shift"]), torch.tensor(scale["scale"])
        robot["action"] = (robot["action"] - shift) / by
    torch.save(frames, folder / FILES[0])
    for name, file in zip(_ROBOT, FILES[1:], strict=True):
        if name in robot:
            torch.save(robot[name], folder / file)
