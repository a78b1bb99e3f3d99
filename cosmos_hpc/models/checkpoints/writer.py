"""Writes weights one at a time: as a NeMo checkpoint, or as a published file."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_saver import save

from cosmos_hpc.models.checkpoints.stored import Weights
from cosmos_hpc.models.checkpoints.weights import FUSED_NORMS, Weight, packed_shape, weights_of
from cosmos_hpc.models.config import Architecture
from cosmos_hpc.models.shapes import published_shapes


@dataclass(frozen=True)
class WriteJob:
    """What is to be written.

    Attributes:
        weights: where they come from.
        model: their architecture.
        dtype: of what is written.
        wrote: called with the bytes of each weight that has been written.
    """

    weights: Weights
    model: Architecture
    dtype: torch.dtype
    wrote: Callable[[int], None]

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        return self.model.num_parameters * self.dtype.itemsize

    def read(self, weight: Weight) -> Tensor:
        """A weight in Megatron's form, in the dtype that is written."""
        return self.weights.read(weight).to(self.dtype)


class _OneByOne(DefaultSavePlanner):
    """Reads each weight when it is its turn to be written.

    PyTorch's own planner and Megatron's take tensors that are all in memory.
    """

    def __init__(self, job: WriteJob) -> None:
        super().__init__()
        self._job = job
        self._weights: dict[tuple[str, torch.Size], Weight] = {}

    def create_local_plan(self) -> SavePlan:
        shapes = published_shapes(self._job.model)
        items = [self._item(w, packed_shape(w, shapes)) for w in weights_of(self._job.model)]
        nothing = [
            WriteItem(MetadataIndex(f"module.{key}"), WriteItemType.BYTE_IO)
            for key in _extra_states(self._job.model)
        ]
        self.plan = SavePlan(items + nothing)
        return self.plan

    def _item(self, weight: Weight, shape: tuple[int, ...]) -> WriteItem:
        size, offsets = list(shape), [0] * len(shape)
        if weight.layer is not None:
            shape = (1, *shape)
            size = [self._job.model.num_layers, *size]
            offsets = [weight.layer, *offsets]
        key, place = f"module.{weight.key}", torch.Size(offsets)
        self._weights[key, place] = weight
        return WriteItem(
            index=MetadataIndex(key, place),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(place, torch.Size(shape)),
                properties=TensorProperties(dtype=self._job.dtype),
                size=torch.Size(size),
            ),
        )

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            content = io.BytesIO()
            # A list, because ranks put theirs together.
            torch.save([None], content)
            return content
        assert write_item.tensor_data is not None and write_item.index.offset is not None
        weight = self._weights[write_item.index.fqn, write_item.index.offset]
        tensor = self._job.read(weight).reshape(write_item.tensor_data.chunk.sizes)
        self._job.wrote(tensor.nbytes)
        return tensor.contiguous()


def _extra_states(model: Architecture) -> Iterator[str]:
    """What layers keep beside their weights for fp8, by layer.

    Without fp8 it is nothing, but Megatron insists on finding it.
    """
    attentions = {"self_attention"} | ({"cross_attention"} if model.context_width else set())
    for weight in weights_of(model):
        module, _, kind = weight.name.rpartition(".")
        if weight.layer is not None and kind == "weight" and weight.name not in FUSED_NORMS:
            yield f"decoder.layers.{module}._extra_state/shard_{weight.layer}_{model.num_layers}"
    for layer in range(model.num_layers):
        for name in sorted(attentions):
            yield (
                f"decoder.layers.{name}.core_attention._extra_state/shard_{layer}_{model.num_layers}"
            )
    yield "decoder.final_layernorm._extra_state/shard_0_1"


def write_nemo_weights(job: WriteJob, folder: Path) -> None:
    """Write the ``weights`` folder of a NeMo checkpoint, in the ``torch_dist`` format.

    It holds unsplit weights, so that any tensor-parallel size can read it.
    """
    folder.mkdir(parents=True)
    try:
        save({}, storage_writer=FileSystemWriter(folder), planner=_OneByOne(job), no_dist=True)
    except CheckpointException as e:
        # What went wrong on each rank, of which there is one.
        raise next(iter(e.failures.values()))[0] from None
    torch.save({}, folder / "common.pt")
    described: dict[str, Any] = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    described |= {"common_backend": "torch", "common_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(described))


def _published(job: WriteJob) -> Iterator[tuple[str, Tensor]]:
    shapes = published_shapes(job.model)
    for weight in weights_of(job.model):
        packed = job.read(weight)
        parts = weight.unpack(packed, [shapes[name][0] for name in weight.parts])
        yield from zip(weight.parts, parts, strict=True)
        job.wrote(packed.nbytes)


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().view(torch.uint8).flatten().numpy().data


def write_torch_file(job: WriteJob, path: Path) -> None:
    """Write a ``model.pt`` by published names, as PyTorch's own ``save`` lays it out."""
    with FakeTensorMode():
        empty = {
            name: torch.empty(shape, dtype=job.dtype)
            for name, shape in published_shapes(job.model).items()
        }
        # Leaves room for the values, which are written below, one tensor at a time.
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(empty, path)
        laid_out = torch.load(path, weights_only=True)
    checksums = {}
    with open(path, "r+b") as f:
        for name, tensor in _published(job):
            offset, values = laid_out[name].untyped_storage()._checkpoint_offset, _bytes(tensor)
            f.seek(offset)
            f.write(values)
            checksums[offset] = zlib.crc32(values)
    _write_checksums(path, checksums)


def _write_checksums(path: Path, checksums: dict[int, int]) -> None:
    """Put checksums of files in a zip file, by the offset of their content, where they belong.

    PyTorch does not look at them, but every other tool that reads zip files does.
    """
    with zipfile.ZipFile(path) as archive:
        entries, position = archive.infolist(), archive.start_dir
    with open(path, "r+b") as f:
        for entry in entries:
            f.seek(entry.header_offset + 26)
            content = entry.header_offset + 30 + sum(struct.unpack("<2H", f.read(4)))
            if content in checksums:
                checksum = struct.pack("<I", checksums[content])
                f.seek(position + 16)
                f.write(checksum)
                # And in the descriptor behind the content, after its signature.
                f.seek(content + entry.file_size + 4)
                f.write(checksum)
            f.seek(position + 28)
            position += 46 + sum(struct.unpack("<3H", f.read(6)))


#: Names of dtypes in safetensors' headers.
_SAFETENSORS_DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def write_safetensors(job: WriteJob, path: Path) -> None:
    """Write a ``.safetensors`` file by published names.

    The format (8 bytes of header length, a JSON header, values) is written here because the
    library's writer wants all tensors in memory.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    shapes = published_shapes(job.model)
    for name in (part for weight in weights_of(job.model) for part in weight.parts):
        start, end = end, end + torch.Size(shapes[name]).numel() * job.dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[job.dtype],
            "shape": list(shapes[name]),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in _published(job):
            f.write(_bytes(tensor))
        f.flush()
        os.fsync(f.fileno())
