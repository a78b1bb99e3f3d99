"""The index of a shard's ids is Megatron's, byte for byte."""

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from cosmos_hpc.worker.datasets.index import read_lengths
from cosmos_hpc.worker.datasets.shard import write_documents


@pytest.mark.parametrize("lengths", [(3, 1, 4), ()])
def test_what_is_written_is_what_megatrons_builder_writes(tmp_path, lengths):
    documents = [np.arange(65535 - n, 65535, dtype=np.int64) for n in lengths]
    write_documents(tmp_path / "own", iter(documents))
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for document in documents:
        builder.add_item(torch.from_numpy(document))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        own, theirs = ((tmp_path / name).with_suffix(suffix) for name in ("own", "theirs"))
        assert own.read_bytes() == theirs.read_bytes()
    assert read_lengths(tmp_path / "own.idx").tolist() == list(lengths)
    if lengths:
        found = IndexedDataset(str(tmp_path / "own"))
        assert [found[i].tolist() for i in range(len(found))] == [d.tolist() for d in documents]


def test_another_file_is_no_index(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "wide.bin"), dtype=np.int32)
    builder.finalize(str(tmp_path / "wide.idx"))
    (tmp_path / "short.idx").write_bytes(b"MMIDIDX")
    for name in ("wide.idx", "short.idx"):
        with pytest.raises(ValueError, match=f"{name} is not an index of 16 bit ids"):
            read_lengths(tmp_path / name)
