"""Clips of tokens as training samples: a sample is one clip, or two frames of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cosmos_hpc.config.sections import Split
from cosmos_hpc.data.parts import FOLDERS
from cosmos_hpc.data.tokens import BEGIN_OF_VIDEO, PADDING
from cosmos_hpc.errors import WorkError
from cosmos_hpc.worker.datasets.documents import open_documents


def split_documents(clips: Iterable[dict[str, Any]], split: Split) -> dict[str, list[int]]:
    """Documents of each part: ``train``, ``validation`` and ``test``.

    Videos are ordered by a hash of the seed and their path and dealt out by weight, all clips of a
    video, and of a ``group`` of videos, to one part. The order depends on neither shards nor the
    order of the clips. A part with a weight gets at least one video when there are three or more.
    Clips that name their ``part`` keep it.
    """
    # Passed through once: every rank does so, and there may be millions.
    parts: dict[str, list[int]] = {part: [] for part in FOLDERS}
    by_video: dict[str, list[int]] = {}
    for clip in clips:
        if "part" in clip:
            chosen = parts[clip["part"]]
        else:
            chosen = by_video.setdefault(clip.get("group", clip["video"]), [])
        chosen.append(clip["document"])
    _deal_out(by_video, split, parts)
    return {part: sorted(documents) for part, documents in parts.items()}


def _deal_out(by_video: dict[str, list[int]], split: Split, parts: dict[str, list[int]]) -> None:
    """Add the documents of each video to a part."""

    def key(video: str) -> bytes:
        return hashlib.sha256(f"{split.seed}:{video}".encode("utf-8", "surrogateescape")).digest()

    videos = sorted(by_video, key=key)
    total = split.train + split.validation + split.test
    sizes = {}
    for part in ("validation", "test"):
        weight = getattr(split, part)
        least = int(weight > 0 and len(videos) >= 3)
        sizes[part] = max(least, int(len(videos) * weight / total))
    start = 0
    for part, size in {**sizes, "train": len(videos) - sum(sizes.values())}.items():
        for video in videos[start : start + size]:
            parts[part].extend(by_video[video])
        start += size


#: What training reads: ``tokens`` and ``labels`` int64 ``[S]``, ``loss_mask`` float32 ``[S]``, and
#: where the model has them ``context`` ``[text positions, context_width]`` or ``action``
#: ``[action_width]``.
SampleDataset = Dataset[dict[str, Tensor]]


class Epochs(SampleDataset):
    """Samples of some items, as many as the training asks for.

    The items are passed through in epochs, each in an order of its own that follows from the seed.
    With ``once``, in the given order, every item counts once, and samples beyond carry no loss.

    Args:
        count: how many items there are.
        length: number of samples.
        seed: of the order.
        once: see above.
    """

    def __init__(self, count: int, length: int, seed: int = 0, once: bool = False) -> None:
        self.count, self.length, self.seed, self.once = count, length, seed, once
        self._epoch, self._order = -1, np.arange(0)

    def sample(self, item: int) -> dict[str, Tensor]:
        """The sample of an item."""
        raise NotImplementedError

    def predicted(self, item: int) -> np.ndarray:
        """Tokens of an item that carry loss, ``[n]``."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        epoch, position = divmod(index, self.count)
        sample = self.sample(position if self.once else int(self._shuffled(epoch)[position]))
        if self.once and epoch:
            sample["loss_mask"].zero_()
        return sample

    def _shuffled(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            self._epoch, self._order = epoch, order
        return self._order

    def unigram_loss(self) -> float:
        """Loss in nats of the best model that ignores all context: the entropy of the tokens.

        At most two thousand items, evenly spaced, are counted.
        """
        counts = np.zeros(1 << 16, np.int64)
        for item in range(0, self.count, -(-self.count // 2000)):
            counts += np.bincount(self.predicted(item), minlength=len(counts))
        share = counts[counts > 0] / counts.sum()
        return float(-(share * np.log(share)).sum())


class Clips(Epochs):
    """Samples of some documents of Megatron's indexed format.

    A sample holds ``tokens`` and ``labels`` int64 ``[S]``, where a label is the id that follows,
    and ``loss_mask`` float32 ``[S]``: the last id of a clip has no successor and no loss.

    Args:
        prefix: of the ``.bin`` and ``.idx`` files; see :func:`open_documents`.
        documents: which ones.
        length, seed, once: as for :class:`Epochs`.
        sequence_length: ids of every document.
        given: number of tokens at the beginning of a clip that carry no loss.

    Raises:
        WorkError: a document has another length.
    """

    def __init__(
        self,
        prefix: str,
        documents: list[int],
        length: int,
        sequence_length: int,
        seed: int = 0,
        once: bool = False,
        given: int = 0,
    ) -> None:
        super().__init__(len(documents), length, seed, once)
        self._given = given
        self._ids, self.documents = open_documents(prefix), documents
        lengths = set(self._ids.sequence_lengths[documents].tolist())
        if lengths - {sequence_length}:
            raise WorkError(
                f"clips in {prefix} have {sorted(lengths)} tokens where the recipe expects "
                f"{sequence_length}"
            )

    def predicted(self, item: int) -> np.ndarray:
        """Tokens of a clip without those that are given."""
        ids: np.ndarray = self._ids[self.documents[item]][self._given :]
        return ids

    def sample(self, item: int) -> dict[str, Tensor]:
        """One clip."""
        ids = torch.from_numpy(self._ids[self.documents[item]].astype(np.int64))
        mask = torch.ones(len(ids))
        mask[-1] = 0.0
        # The label of the last given id is the first to be predicted.
        mask[: max(0, self._given - 1)] = 0.0
        return {"tokens": ids, "labels": torch.roll(ids, -1), "loss_mask": mask}


def conditioned_sample(ids: Tensor, sequence_length: int, given: int = 0) -> dict[str, Tensor]:
    """A sample of a model with text or actions, without what it is conditioned on.

    The sequence is begin-of-video, the ids, and padding; inputs are all but the last, labels all
    but the first. Only labels among the ids count, and of these only the ones to be predicted.

    Args:
        ids: int64 ``[n]`` of a clip, or of two frames.
        sequence_length: inputs, more than ``n``.
        given: number of tokens at the beginning that carry no loss.

    Returns:
        ``tokens`` and ``labels`` int64 and ``loss_mask`` float32, each ``[sequence_length]``.
    """
    sequence = padded_sequence(ids, sequence_length)
    mask = torch.zeros(sequence_length)
    mask[given : len(ids)] = 1
    # The output layer has no row for special ids; a label that does not count is any other.
    labels = sequence[1:].where(mask.bool(), 0)
    return {"tokens": sequence[:-1], "labels": labels, "loss_mask": mask}


def padded_sequence(ids: Tensor, sequence_length: int) -> Tensor:
    """Begin-of-video, the tokens, and padding: int64 ``[sequence_length + 1]``."""
    sequence = torch.full((sequence_length + 1,), PADDING)
    sequence[0] = BEGIN_OF_VIDEO
    sequence[1 : len(ids) + 1] = ids
    return sequence
