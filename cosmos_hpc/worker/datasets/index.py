"""The index of Megatron's indexed datasets, ``PREFIX.idx``, written and read without Megatron-Core.

Its import takes longer than most tasks of preprocess and finalize would work.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from cosmos_hpc.worker.datasets.journal import ID_DTYPE

#: Name and version of the format, the number of the type of ids, counts of sequences and of ends.
_HEADER = struct.Struct("<9sQBQQ")
#: The last number is that of uint16, :data:`ID_DTYPE`.
_KIND = (b"MMIDIDX\x00\x00", 1, 8)


def write_index(path: Path, lengths: np.ndarray) -> None:
    """Write the index of ids that lie one after the other, a document a sequence.

    Args:
        path: of the index.
        lengths: ``[documents]``, ids of each.
    """
    count = len(lengths)
    ends = np.cumsum(lengths, dtype=np.int64)
    with open(path, "wb") as f:
        f.write(_HEADER.pack(*_KIND, count, count + 1))
        f.write(lengths.astype("<i4").tobytes())
        f.write(((ends - lengths) * ID_DTYPE().itemsize).astype("<i8").tobytes())
        f.write(np.arange(count + 1, dtype="<i8").tobytes())


def read_lengths(path: Path) -> np.ndarray:
    """Ids of each document of an index, int32 ``[documents]``.

    Raises:
        ValueError: it is no such index.
    """
    with open(path, "rb") as f:
        found = f.read(_HEADER.size)
        if len(found) < _HEADER.size or _HEADER.unpack(found)[:3] != _KIND:
            raise ValueError(f"{path} is not an index of 16 bit ids in Megatron's format")
        return np.fromfile(f, "<i4", _HEADER.unpack(found)[3])
