"""The frames that samples are compared with: the true ones, and references made of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.fetched import tokenizer_folder
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.worker.datasets.shard import cut_of
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.clips import read_clips
from cosmos_hpc.worker.video.spans import Span


class ClipFrames:
    """Frames of clips that samples continue.

    Args:
        run, recipe: whose samples.
    """

    def __init__(self, run: RunFolder, recipe: Recipe) -> None:
        self._run, self._recipe = run, recipe
        device = "cuda" if torch.cuda.is_available() else "cpu"
        shape = recipe.data.latent_shape
        self._tokenizer = VideoTokenizer(tokenizer_folder(run), shape, device)

    def truth(self, record: dict[str, Any]) -> np.ndarray:
        """The true frames that a sample stands for, as many as the video has.

        Args:
            record: of the sample.

        Returns:
            uint8 ``[3, T, H, W]``, fitted as clips are.

        Raises:
            VideoError: the video is not there any more, or is damaged.
        """
        cut, span = cut_of(self._recipe.data), Span.of(record.get("span", {}))
        if self._recipe.kind.by_steps:
            every = dataclasses.replace(cut, every=True)
            clips = read_clips(Path(record["source"]), every, span=span)
            frames = [clip.pixels for clip, _ in zip(clips, range(record["frames"]), strict=False)]
            return np.concatenate(frames, 1)
        whole = dataclasses.replace(
            cut, frames=record["frames"], start=record["time"], every=False, stride=None, pad=True
        )
        clip = next(read_clips(Path(record["source"]), whole, span=span))
        return clip.pixels[:, : clip.pixels.shape[1] - clip.padded]

    def generated(self, key: str) -> np.ndarray:
        """The frames of a sample before they were compressed, uint8 ``[3, T, H, W]``.

        Raises:
            WorkError: its tokens are gone.
        """
        path = self._run.generated.tokens(key)
        try:
            tokens = load_file(path)["tokens"]
        except (OSError, KeyError) as e:
            raise WorkError(f"{path} cannot be read ({e}); run the generate stage again") from None
        overlap = self._recipe.overlap_frames
        parts = [
            self._decode(part)[:, overlap if number else 0 :] for number, part in enumerate(tokens)
        ]
        return np.concatenate(parts, 1)

    def reconstructed(self, pixels: np.ndarray) -> np.ndarray:
        """Frames through the tokenizer and back, clip by clip: the best that a model could do."""
        size, parts = self._recipe.data.frames, []
        for first in range(0, pixels.shape[1], size):
            part = pixels[:, first : first + size]
            whole = np.pad(part, ((0, 0), (0, size - part.shape[1]), (0, 0), (0, 0)), "edge")
            tokens = self._tokenizer.encode(np.ascontiguousarray(whole)[None])[0]
            parts.append(self._decode(tokens)[:, : part.shape[1]])
        return np.concatenate(parts, 1)

    def _decode(self, tokens: Tensor) -> np.ndarray:
        pixels: np.ndarray = self._tokenizer.decode(tokens[None])[0].numpy()
        return pixels


def repeated(truth: np.ndarray, given: int) -> np.ndarray:
    """The given frames, and the last one of them for all others."""
    still = truth.copy()
    still[:, given:] = truth[:, given - 1 : given]
    return still
