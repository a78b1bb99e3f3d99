"""The two formats of distributed checkpoints, read an array or a part of one at a time."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from cosmos_hpc.errors import RequestError

Shape = tuple[int, ...]

#: What the index of a checkpoint is made of; anything else in it could run code when unpickled.
_INDEX_CLASSES = {
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
}
#: Megatron's own add nothing that is needed here, and Megatron itself is not.
_INSTEAD = {"MCoreMetadata": Metadata, "MCoreSavePlan": SavePlan}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("megatron.core.dist_checkpointing") and name in _INSTEAD:
            return _INSTEAD[name]
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into an index")


def _read_index(folder: Path) -> Metadata:
    path = folder / ".metadata"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RequestError(f"{folder} has no .metadata: the checkpoint is not complete") from None
    try:
        index = _IndexUnpickler(io.BytesIO(content)).load()
    except Exception as e:
        # A damaged pickle raises nearly anything.
        raise RequestError(f"{path} is damaged or not the index of a checkpoint: {e}") from None
    if not isinstance(index, Metadata):
        raise RequestError(f"{path} is not the index of a checkpoint")
    return index


def find_damage(folder: Path) -> str | None:
    """What a checkpoint in PyTorch's distributed format evidently lacks; None where nothing shows.

    Its index says where each piece lies, so that files that are gone or too short are found without
    reading them: a full disk, a quota or a node that was lost leaves such.

    Args:
        folder: the one that holds ``.metadata``.
    """
    try:
        index = _read_index(folder)
    except RequestError as e:
        return str(e)
    needed: dict[str, int] = {}
    for piece in (index.storage_data or {}).values():
        end = piece.offset + piece.length
        needed[piece.relative_path] = max(needed.get(piece.relative_path, 0), end)
    for name, size in sorted(needed.items()):
        try:
            there = (folder / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is gone"
        if there < size:
            return f"{name} has {there} bytes of at least {size}"
    return None


class _Region(DefaultLoadPlanner):
    """Sends what is read of one array into a tensor that covers a part of it."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        part = self._target
        places = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        for axis, (start, length) in enumerate(places):
            part = part.narrow(axis, start, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: the part is a view."""


class _TorchDistArray:
    def __init__(self, reader: FileSystemReader, key: str, stored: TensorStorageMetadata) -> None:
        self._reader, self._key, self._stored = reader, key, stored
        self.shape: Shape = tuple(stored.size)
        self.dtype = stored.properties.dtype

    def read(self, index: int | None) -> Tensor:
        """See :class:`cosmos_hpc.models.checkpoints.nemo_folders.Array`."""
        offsets, sizes = [0] * len(self.shape), list(self.shape)
        if index is not None:
            offsets[0], sizes[0] = index, 1
        target = torch.empty(sizes, dtype=self.dtype)
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(self._key, self._stored, [chunk])
        if sum(item.lengths.numel() for item in items) != target.numel():
            raise ValueError("the index does not cover it")
        self._reader.read_data(LoadPlan(items), _Region(target)).wait()
        return target if index is None else target[0]


def open_torch_dist(folder: Path) -> Mapping[str, _TorchDistArray]:
    """Arrays of a checkpoint in PyTorch's distributed format, by key.

    Raises:
        RequestError: the index cannot be read, or files that it names are missing or short.
    """
    index = _read_index(folder)
    ends: dict[Path, int] = {}
    try:
        for info in index.storage_data.values():
            path = folder / info.relative_path
            ends[path] = max(ends.get(path, 0), info.offset + info.length)
        reader = FileSystemReader(folder)
        reader.set_up_storage_reader(index, is_coordinator=True)
        arrays = {
            key: _TorchDistArray(reader, key, stored)
            for key, stored in index.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
    except (AttributeError, TypeError, ValueError):
        # Unpickled objects may lack anything.
        raise RequestError(f"{folder / '.metadata'} is damaged") from None
    for path, end in ends.items():
        size = path.stat().st_size if path.is_file() else None
        if size is None or size < end:
            state = "is missing" if size is None else f"is truncated: {size} of {end} bytes"
            raise RequestError(f"{path} {state}")
    return arrays


class _ZarrArray:
    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape: Shape = tuple(array.shape)
        self.dtype: torch.dtype = getattr(torch, array.dtype.name)

    def read(self, index: int | None) -> Tensor:
        """See :class:`cosmos_hpc.models.checkpoints.nemo_folders.Array`."""
        missing = self._array.nchunks - self._array.nchunks_initialized
        if missing:
            # zarr would give what happens to be in memory.
            raise ValueError(f"{missing} of its {self._array.nchunks} files are missing")
        values = self._array[...] if index is None else self._array[index]
        if self.dtype == torch.bfloat16:  # PyTorch does not know NumPy's
            return torch.from_numpy(values.view("int16")).view(torch.bfloat16)
        return torch.from_numpy(values)


def open_zarr(folder: Path) -> Mapping[str, _ZarrArray]:
    """Arrays of a checkpoint in zarr format, which Megatron-Core wrote before ``torch_dist``.

    Raises:
        RequestError: zarr is not installed, or an array cannot be opened.
    """
    try:
        import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
        import zarr
    except ModuleNotFoundError as e:
        raise RequestError(
            f"{folder} is in zarr format, and {e.name} is not installed; "
            f"pip install -c constraints.txt '.[train]'"
        ) from None
    arrays = {}
    for path in sorted(p.parent for p in folder.glob("*/.zarray")):
        try:
            arrays[path.name] = _ZarrArray(zarr.open(str(path), mode="r"))
        except Exception as e:
            raise RequestError(f"{path} is damaged or not a zarr array: {e}") from None
    return arrays
