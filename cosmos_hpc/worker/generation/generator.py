"""The interface of the classes that generate samples of a task, and the writing of samples."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.runs.fetched import tokenizer_folder
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.worker.generation.guard import Guard, RefusedError
from cosmos_hpc.worker.generation.items import Clip, Item
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.problems import VideoError
from cosmos_hpc.worker.video.writer import VideoWriter


@dataclass(frozen=True)
class Ready:
    """What a sample begins with.

    Attributes:
        item: the sample.
        tokens: of the condition, int64 ``[n]`` in the order T, H, W.
        frames: that the sample is to have in all.
        rate: frames per second.
        extra: what the model reads beside them: a text's embedding, or actions.
    """

    item: Item
    tokens: Tensor
    frames: int
    rate: float
    extra: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """A piece of a sample.

    Attributes:
        tokens: int32 ``[T', H', W']``.
        pixels: of the frames that it adds, uint8 ``[3, T, H, W]``.
    """

    tokens: Tensor
    pixels: np.ndarray


class Generator(ABC):
    """Makes the samples of a task.

    Args:
        run, recipe: what to generate for.

    Attributes:
        clips: what there is to generate from.
        device: on which the models run.
        usual_rate: frames per second where neither the recipe nor a file says.
    """

    usual_rate = 25.0  # as NVIDIA's own scripts write what the models generate

    def __init__(self, run: RunFolder, recipe: Recipe) -> None:
        self.run, self.recipe = run, recipe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clips = self.list_clips()
        name = recipe.generate.guard
        self._guard = Guard(name) if name else None
        self._tokenizer: VideoTokenizer | None = None

    @abstractmethod
    def list_clips(self) -> list[Clip]:
        """What there is to generate from."""

    def prepare(self, items: Sequence[Item]) -> None:  # noqa: B027 - most need nothing
        """Do what must be done, and freed again, before a decoder is loaded."""

    @abstractmethod
    def ready(self, item: Item) -> Ready:
        """What an item begins with.

        Raises:
            VideoError: its input cannot be used.
            RefusedError: the guard refuses it.
        """

    @abstractmethod
    def draw(self, decoder: CosmosDecoder, ready: list[Ready]) -> Iterator[list[Part | None]]:
        """The parts of some samples, one of each at a time, in the order of ``ready``.

        None stands for a sample that is complete before the others of its batch.
        """

    @property
    def tokenizer(self) -> VideoTokenizer:
        """Loaded when it is first asked for."""
        if self._tokenizer is None:
            folder = tokenizer_folder(self.run)
            self._tokenizer = VideoTokenizer(folder, self.recipe.data.latent_shape, self.device)
        return self._tokenizer

    def check(self, prompt: str | None, pixels: Callable[[], np.ndarray]) -> None:
        """Show a prompt and frames uint8 ``[3, T, H, W]`` to the guard, where there is one.

        Raises:
            RefusedError: it refuses them.
        """
        if self._guard:
            self._guard.check(prompt, pixels())

    def make(self, decoder: CosmosDecoder, items: list[Item], facts: dict[str, Any]) -> None:
        """Generate samples together and write each: its video, its tokens, and then its record.

        Args:
            decoder: of their weights.
            items: of one group.
            facts: what every record says.
        """
        ready = []
        for item in items:
            with self._refusals(item, facts):
                ready.append(self.ready(item))
        if not ready:
            return
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(_Output(self, one, facts)) for one in ready]
            for parts in self.draw(decoder, ready):
                for output, part in zip(outputs, parts, strict=True):
                    output.add(part)
            for output in outputs:
                output.finish()

    @contextlib.contextmanager
    def _refusals(self, item: Item, facts: dict[str, Any]) -> Iterator[None]:
        """Note instead of a sample why there is none."""
        self.run.generated.refusal(item.key).unlink(missing_ok=True)
        try:
            yield
        except (VideoError, RefusedError) as e:
            self.refuse(item, e, facts)

    def refuse(self, item: Item, why: VideoError | RefusedError, facts: dict[str, Any]) -> None:
        """Record why this sample could not be generated."""
        reason = f"{item.clip.source}: {why}"
        row = {"key": item.key, "kind": why.kind, "reason": reason, "of": facts["of"]}
        files.write_json(self.run.generated.refusal(item.key), row)


class _Output:
    """Files of one sample on their way."""

    def __init__(self, generator: Generator, ready: Ready, facts: dict[str, Any]) -> None:
        self._generator, self._ready, self._facts = generator, ready, facts
        self._item, self._data = ready.item, generator.recipe.data
        self._tokens: list[Tensor] = []
        self._frames, self._refused = 0, False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Output:
        path = self._generator.run.generated.video(self._item.key)
        writer = VideoWriter(path, self._ready.rate, self._data.height, self._data.width)
        self._video = self._stack.enter_context(writer)
        return self

    def __exit__(self, *error: Any) -> None:
        # A video that is not finished is not kept.
        self._stack.__exit__(*(error if error[0] else (GeneratorExit, GeneratorExit(), None)))

    def add(self, part: Part | None) -> None:
        """Write a piece, unless the guard has refused the sample."""
        if part is None or self._refused:
            return
        pixels = part.pixels[:, : self._ready.frames - self._frames]
        try:
            self._generator.check(self._item.clip.record.get("prompt"), lambda: pixels)
        except RefusedError as e:
            self._refused = True
            self._generator.refuse(self._item, e, self._facts)
            return
        self._video.add(pixels)
        self._frames += pixels.shape[1]
        self._tokens.append(part.tokens)

    def finish(self) -> None:
        """Close the video and write the tokens, then the record, which completes the sample."""
        if self._refused:
            return
        self._stack.close()
        generated, key = self._generator.run.generated, self._item.key
        write_tokens(generated.tokens(key), torch.stack(self._tokens))
        files.write_json(generated.record(key), self._record())

    def _record(self) -> dict[str, Any]:
        item, recipe = self._item, self._generator.recipe
        generate = recipe.generate
        return {
            "key": item.key,
            "clip": item.clip.number,
            "sample": item.sample,
            "weights": item.weights,
            "source": item.clip.source,
            **item.clip.record,
            "frames": self._frames,
            "condition_frames": item.clip.given,
            "frame_rate": self._ready.rate,
            "height": self._data.height,
            "width": self._data.width,
            "seed": item.seed,
            "sampling": {
                "temperature": generate.temperature,
                "top_p": generate.top_p,
                "seed": generate.seed,
            },
            **self._facts,
            "video": f"{item.key}.mp4",
            "ids": f"{item.key}.safetensors",
        }


def write_tokens(path: Path, tokens: Tensor) -> None:
    """Write tokens as one tensor ``tokens`` of a safetensors file, complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({"tokens": tokens.to(torch.int32).contiguous()}, temporary)
    files.fsync_path(temporary)
    temporary.replace(path)
