"""The training samples of a run, for each task: what makes those of a part, and their number.

Each function returns a maker, called with a part and the arguments of
:class:`~cosmos_hpc.worker.datasets.samples.Epochs`, and the number of samples of each part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.parts import FOLDERS
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.conditioned import (
    FramePairs,
    TextClips,
    pair_starts,
    read_tensor,
    sample_counts,
)
from cosmos_hpc.worker.datasets.samples import Clips, Epochs, split_documents

#: Makes the samples of a part, given the arguments of :class:`Epochs`.
Make = Callable[..., Epochs]


def clips(run: RunFolder, recipe: Recipe) -> tuple[Make, dict[str, int]]:
    """Clips of tokens, from the joined tokens or the shards."""
    sequence = recipe.model_for_clips().sequence_length
    documents = split_documents(files.iterate_jsonl(run.tokens.clips), recipe.data.split)
    given = recipe.train.given_ids(recipe.data)

    def make(part: str, **settings: Any) -> Epochs:
        prefix = str(run.tokens.prefix)
        return Clips(prefix, documents[part], sequence_length=sequence, given=given, **settings)

    return make, {part: len(chosen) for part, chosen in documents.items()}


def text_clips(run: RunFolder, recipe: Recipe) -> tuple[Make, dict[str, int]]:
    """Clips and the embeddings of their prompts."""
    sequence, ids = recipe.model_for_clips().sequence_length, recipe.data.ids_per_clip
    given = recipe.train.given_ids(recipe.data)

    def make(part: str, **settings: Any) -> Epochs:
        return TextClips(run.tokens.samples, part, ids, sequence, given=given, **settings)

    return make, sample_counts(run.tokens.samples)


def frame_pairs(run: RunFolder, recipe: Recipe) -> tuple[Make, dict[str, int]]:
    """Frames, the next ones and the actions between them."""
    sequence = recipe.model_for_clips().sequence_length

    def make(part: str, **settings: Any) -> Epochs:
        return FramePairs(run.tokens.samples / FOLDERS[part], sequence, **settings)

    def pairs(part: str) -> int:
        path = run.tokens.samples / FOLDERS[part] / "actions.pt"
        return len(pair_starts(read_tensor(path))) if path.exists() else 0

    return make, {part: pairs(part) for part in FOLDERS}
