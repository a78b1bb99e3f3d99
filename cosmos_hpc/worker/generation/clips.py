"""Samples that continue a video, clip after clip, from its frames alone or from a text as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from torch import Tensor

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.models import generate
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils.progress import say
from cosmos_hpc.worker.datasets.conditioned import read_tensor
from cosmos_hpc.worker.datasets.documents import ShardedDocuments, open_documents
from cosmos_hpc.worker.datasets.shard import cut_of
from cosmos_hpc.worker.generation.generator import Generator, Part, Ready
from cosmos_hpc.worker.generation.items import Clip, Item
from cosmos_hpc.worker.generation.sources import held_out_clips, inputs
from cosmos_hpc.worker.tokenizers.texts import encode_missing, prompt_file
from cosmos_hpc.worker.video.conditions import read_condition
from cosmos_hpc.worker.video.spans import Span


class Clips(Generator):
    """Continues clips; what is longer than one, clip after clip.

    The frames at the end of a clip are the condition of the next one. They go through pixels: the
    tokens of a latent frame that stands for several frames cannot be those of a first one.
    """

    def __init__(self, run: RunFolder, recipe: Recipe) -> None:
        super().__init__(run, recipe)
        self._documents: IndexedDataset | ShardedDocuments | None = None

    def list_clips(self) -> list[Clip]:
        """Held-out clips of the run, or its inputs."""
        if not self.recipe.given_frames:
            say("a clip of one frame leaves nothing to generate")
            return []
        if self.recipe.trains:
            return held_out_clips(self.run, self.recipe)
        return inputs(self.run, self.recipe)

    def prepare(self, items: Sequence[Item]) -> None:
        """Encode the prompts; the text encoder is freed afterwards."""
        prompts = dict.fromkeys(item.clip.record.get("prompt") for item in items)
        encode_missing(self.run, self.recipe, [prompt for prompt in prompts if prompt])

    def ready(self, item: Item) -> Ready:
        """The first latent frames of a clip that is in the run's tokens, or those of an input."""
        clip, prompt = item.clip, item.clip.record["prompt"]
        if "document" in clip.record:
            tokens, rate = self._tokens_of(clip), clip.rate
            self.check(prompt, lambda: self._decode(tokens)[:, : clip.given])
        else:
            cut = dataclasses.replace(cut_of(self.recipe.data), frames=clip.given)
            span = Span.of(clip.record.get("span", {}))
            condition = read_condition(Path(clip.source), cut, span)
            self.check(prompt, lambda: condition.pixels)
            tokens, rate = self._encode(condition.pixels), condition.rate
        kept = 1 + (clip.given - 1) // self.recipe.data.compression[0]
        context = read_tensor(prompt_file(self.run, prompt)) if prompt else None
        rate = rate or self.usual_rate
        return Ready(item, tokens[:kept].flatten().long(), self._frames(rate), rate, context)

    def _frames(self, rate: float) -> int:
        """Frames that a sample is to have."""
        wanted, data = self.recipe.generate, self.recipe.data
        if wanted.seconds:
            return max(self.recipe.given_frames + 1, round(wanted.seconds * rate))
        return wanted.frames or data.frames

    def _tokens_of(self, clip: Clip) -> Tensor:
        """int32 ``[T', H', W']`` of a clip of the run."""
        if self._documents is None:
            self._documents = open_documents(str(self.run.tokens.prefix))
        ids = self._documents[clip.record["document"]].astype(np.int32)
        return torch.from_numpy(ids).view(self.recipe.data.latent_shape)

    def _decode(self, tokens: Tensor) -> np.ndarray:
        """Pixels uint8 ``[3, T, H, W]`` of tokens ``[T', H', W']``."""
        pixels: np.ndarray = self.tokenizer.decode(tokens[None])[0].numpy()
        return pixels

    def _encode(self, pixels: np.ndarray) -> Tensor:
        """Tokens int32 ``[T', H', W']`` of a clip that begins with these frames.

        The last one is repeated to the length of a clip: the tokenizers look back in time only, so
        that the latent frames of what is given are the same whatever follows.
        """
        missing = self.recipe.data.frames - pixels.shape[1]
        clip = np.pad(pixels, ((0, 0), (0, missing), (0, 0), (0, 0)), "edge")
        return self.tokenizer.encode(clip[None])[0]

    def draw(self, decoder: CosmosDecoder, ready: list[Ready]) -> Iterator[list[Part | None]]:
        """Clip after clip, until the longest sample is complete."""
        recipe = self.recipe
        shape, clip_ids = recipe.data.latent_shape, recipe.data.ids_per_clip
        overlap = recipe.overlap_frames
        prompts = torch.stack([one.tokens for one in ready])
        contexts = None
        if ready[0].extra is not None:
            contexts = torch.stack([one.extra for one in ready if one.extra is not None])
        there, number = 0, 0
        while there < max(one.frames for one in ready):
            ids = generate(
                decoder,
                prompts,
                clip_ids - prompts.shape[1],
                context=contexts,
                temperature=recipe.generate.temperature,
                top_p=recipe.generate.top_p,
                seed=[one.item.seed_of(number) for one in ready],
            ).view(-1, *shape)
            pixels = [self._decode(tokens) for tokens in ids]
            skipped = overlap if number else 0
            yield [
                Part(tokens.int(), new[:, skipped:]) if one.frames > there else None
                for one, tokens, new in zip(ready, ids, pixels, strict=True)
            ]
            there += recipe.data.frames - skipped
            number += 1
            kept = 1 + (overlap - 1) // recipe.data.compression[0]
            if there < max(one.frames for one in ready):
                ends = [self._encode(new[:, -overlap:])[:kept].flatten() for new in pixels]
                prompts = torch.stack(ends).long()
