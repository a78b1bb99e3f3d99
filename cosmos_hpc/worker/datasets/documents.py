"""The documents of a run's tokens, whether the shards were joined or left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDataset


class ShardedDocuments:
    """Documents that were left in their shards, numbered as if they were joined.

    Read through Megatron's indexed datasets, without a map or open file for every shard's tokens:
    of thousands, both would run out.

    Args:
        prefixes: of the shards' ``.bin`` and ``.idx`` files, in order.

    Attributes:
        sequence_lengths: int32 ``[documents]``, ids of each.
    """

    def __init__(self, prefixes: Sequence[str]) -> None:
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        self._shards = [IndexedDataset(prefix, mmap=False) for prefix in prefixes]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self.sequence_lengths = np.concatenate([shard.sequence_lengths for shard in self._shards])

    def __len__(self) -> int:
        return len(self.sequence_lengths)

    def __getitem__(self, document: int) -> np.ndarray:
        if not 0 <= document < len(self):
            raise IndexError(document)
        shard = int(np.searchsorted(self._ends, document, side="right"))
        first = self._ends[shard] - len(self._shards[shard])
        ids: np.ndarray = self._shards[shard][int(document - first)]
        return ids


def open_documents(prefix: str) -> IndexedDataset | ShardedDocuments:
    """The documents of a run's tokens: joined, or where they were not, those of its shards.

    Args:
        prefix: of the joined ``.bin`` and ``.idx`` files; the shards lie in ``shards`` beside them.
    """
    # Imported late: it takes seconds, and preparing a shard opens none.
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    if IndexedDataset.exists(prefix):
        return IndexedDataset(prefix)
    shards = sorted(Path(prefix).parent.glob("shards/[0-9]*"))
    return ShardedDocuments([str(shard / "tokens") for shard in shards])
