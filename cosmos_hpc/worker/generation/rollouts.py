"""Samples of models with actions: complete episodes, from their first frame and all actions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.parts import FOLDERS
from cosmos_hpc.errors import WorkError
from cosmos_hpc.models import generate
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.conditioned import read_tensor
from cosmos_hpc.worker.datasets.shard import cut_of
from cosmos_hpc.worker.generation.generator import Generator, Part, Ready
from cosmos_hpc.worker.generation.items import Clip, Item
from cosmos_hpc.worker.generation.sources import HELD_OUT, frame_rate, inputs, named_span
from cosmos_hpc.worker.video.conditions import read_condition
from cosmos_hpc.worker.video.problems import VideoError

#: By which actions are made alike.
_SCALE = ("shift", "scale")


class Rollouts(Generator):
    """Predicts frame after frame, each from the tokens of the one before and an action.

    The tokens that were generated are the next condition as they are: decoding them and encoding
    the pixels again would add an error of the tokenizer at each step.
    """

    usual_rate = 5.0  # of the robots' videos that the published models were trained on

    def list_clips(self) -> list[Clip]:
        """Held-out episodes of the run, or its inputs."""
        listed = _episodes if self.recipe.trains else inputs
        return listed(self.run, self.recipe)

    def ready(self, item: Item) -> Ready:
        """The first frame and the actions."""
        clip, rate = item.clip, item.clip.rate
        if "first" in clip.record:
            folder, first = self._folder(clip), clip.record["first"]
            frames = read_tensor(folder / "tokenized-frames.pt", mmap=True)
            tokens = frames[first]
            actions = read_tensor(folder / "actions.pt")[first : first + clip.record["steps"]]
            self.check(None, lambda: self.tokenizer.decode(tokens[None])[0].numpy())
        else:
            condition = read_condition(Path(clip.source), cut_of(self.recipe.data))
            self.check(None, lambda: condition.pixels)
            tokens = self.tokenizer.encode(condition.pixels[None])[0]
            actions = self._alike(read_actions(Path(clip.record["actions"]), self._width))
            rate = condition.rate
        rate = rate or self.usual_rate
        return Ready(item, tokens.flatten().long(), 1 + len(actions), rate, actions.float())

    @property
    def _width(self) -> int:
        width = self.recipe.model.action_width
        assert width is not None
        return width

    def _alike(self, actions: Tensor) -> Tensor:
        """Actions as the model was trained on them, where its run has made them alike."""
        path = self.recipe.generate.action_stats
        if path is None:
            return actions
        scale = files.read_json(Path(path))
        if scale is None:
            raise WorkError(f"generate.action_stats={path} is not there")
        try:
            shift, by = (torch.tensor(scale[key], dtype=torch.float32) for key in _SCALE)
        except (KeyError, TypeError, ValueError) as e:
            raise WorkError(f"generate.action_stats={path} has no shift and scale: {e!r}") from None
        if not shift.shape == by.shape == (self._width,):
            raise WorkError(
                f"generate.action_stats={path} is of {shift.numel()} numbers, and the "
                f"model's actions have {self._width}"
            )
        return (actions - shift) / by

    def _folder(self, clip: Clip) -> Path:
        return self.run.tokens.samples / FOLDERS[clip.record["part"]]

    def draw(self, decoder: CosmosDecoder, ready: list[Ready]) -> Iterator[list[Part | None]]:
        """Step after step, until the longest episode ends; the others wait at their last one."""
        wanted, size = self.recipe.generate, self.recipe.data.ids_per_clip
        now = torch.stack([one.tokens for one in ready])
        yield [self._part(one, tokens, 0) for one, tokens in zip(ready, now, strict=True)]
        actions = [one.extra for one in ready if one.extra is not None]
        for step in range(max(map(len, actions))):
            ids = generate(
                decoder,
                now,
                size,
                action=torch.stack([own[min(step, len(own) - 1)] for own in actions]),
                temperature=wanted.temperature,
                top_p=wanted.top_p,
                seed=[one.item.seed_of(step) for one in ready],
            )
            now = ids[:, size:]
            yield [
                self._part(one, tokens, step + 1) for one, tokens in zip(ready, now, strict=True)
            ]

    def _part(self, ready: Ready, tokens: Tensor, frame: int) -> Part | None:
        if frame >= ready.frames:
            return None
        shaped = tokens.view(self.recipe.data.latent_shape).int()
        return Part(shaped, self.tokenizer.decode(shaped[None])[0].numpy())


def _episodes(run: RunFolder, recipe: Recipe) -> list[Clip]:
    """Held-out episodes with at least one action, in the order of the run's files."""
    rows = files.read_jsonl(run.tokens.samples / "clips.jsonl")
    long_enough = [row for row in rows if row["frames"] > 1]
    part = next((p for p in HELD_OUT if any(row["part"] == p for row in long_enough)), None)
    root = files.read_json(run.data.shards)["root"]
    pinned = {row.get("video", row["path"]): row for row in files.iterate_jsonl(run.data.videos)}
    chosen = [row for row in long_enough if row["part"] == part][: recipe.generate.clips]
    seconds = _seconds(run, {row["video"] for row in chosen})
    return [
        Clip(
            number,
            identity=row["video"],
            source=os.path.join(root, pinned[row["video"]]["path"]),
            given=1,
            rate=frame_rate(row["frames"], seconds[row["video"]]),
            record={
                "source_clip": 0,
                "time": 0.0,
                "part": part,
                "prompt": None,
                "first": row["first"],
                "steps": row["frames"] - 1,
                **named_span(pinned[row["video"]]),
            },
        )
        for number, row in enumerate(chosen)
    ]


def _seconds(run: RunFolder, videos: set[str]) -> dict[str, float]:
    """How long some episodes are, which each of their frames says."""
    rows = (row for row in files.iterate_jsonl(run.tokens.clips) if row["clip"] == 0)
    return {row["video"]: row["seconds"] for row in rows if row["video"] in videos}


def read_actions(path: Path, width: int) -> Tensor:
    """Actions float32 ``[steps, width]`` of a JSON file: a list of rows, or one under ``action``.

    Raises:
        VideoError: it is not that, or its rows are not finite numbers of that width.
    """
    try:
        value: Any = files.read_json(path)
        if isinstance(value, dict):
            value = value["action"]
        actions = torch.tensor(value, dtype=torch.float32)
    except (OSError, WorkError, KeyError, TypeError, ValueError) as e:
        raise VideoError("actions", f"{path} holds no list of actions: {e}") from None
    if actions.ndim != 2 or actions.shape[1] != width or not len(actions):
        raise VideoError(
            "actions", f"{path} holds actions {list(actions.shape)}, not [steps, {width}]"
        )
    if not math.isfinite(float(actions.abs().max())):
        raise VideoError("actions", f"{path} holds actions that are not finite numbers")
    return actions
