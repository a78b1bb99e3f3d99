"""Reads weights from disk one at a time: published files, and NeMo checkpoints.

Nothing is unpickled but tensors and the plain classes of a checkpoint's index.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import Architecture
from cosmos_hpc.models.shapes import published_shapes
from cosmos_hpc.models.weights import (
    FUSED_NORMS,
    Weight,
    compare_shapes,
    is_new,
    packed_shape,
    weights_of,
)

Shape = tuple[int, ...]

#: One layer of everything that there may be, to look names up.
_TEMPLATE = Architecture(
    num_layers=1,
    hidden_size=2,
    ffn_hidden_size=1,
    num_attention_heads=1,
    num_query_groups=1,
    kv_channels=6,
    context_width=4,
    action_width=1,
)


#: Megatron rounds vocabularies up to a multiple of at most this (128 times tensor parallel 8).
_VOCABULARY_PADDING = 1024


def same_sizes(found: Architecture, model: Architecture) -> bool:
    """Whether weights of these sizes are of an architecture, but for padded vocabularies."""
    exact = (
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "context_width",
        "action_width",
    )
    return all(getattr(found, name) == getattr(model, name) for name in exact) and all(
        0 <= getattr(found, name) - getattr(model, name) < _VOCABULARY_PADDING
        for name in ("vocab_size", "output_vocab_size")
    )


class Weights(ABC):
    """Weights of a model, read one at a time.

    Attributes:
        where: what was opened, for messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    @abstractmethod
    def expect(self, model: Architecture, may_be_new: bool = False) -> None:
        """Compare names and shapes with those of an architecture; drop what pads vocabularies.

        Args:
            model: the architecture.
            may_be_new: heads that base checkpoints lack may be missing.

        Raises:
            RequestError: names the missing, unexpected and misshapen tensors.
        """

    @abstractmethod
    def read(self, weight: Weight) -> Tensor:
        """A weight in Megatron's form, whole, in the dtype that it is stored in.

        Raises:
            RequestError: the file is damaged.
        """

    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds all weights as they are stored.

        Raises:
            RequestError: some are no plain floating-point numbers.
        """

    @abstractmethod
    def has(self, weight: Weight) -> bool:
        """Whether the weight is there."""

    @abstractmethod
    def _shape(self, weight: Weight) -> Shape | None:
        """Shape of a weight in Megatron's form; None where there is none."""

    @abstractmethod
    def _num_layers(self) -> int: ...

    def sizes(self) -> Architecture:
        """The architecture as far as shapes tell: without YaRN, rotary base and padding.

        Raises:
            RequestError: this is no checkpoint of a Cosmos model.
        """
        try:
            return self._sizes({w.name: self._shape(w) for w in weights_of(_TEMPLATE)})
        except (ValueError, IndexError, ZeroDivisionError):
            raise RequestError(
                f"{self.where} is not a checkpoint of a Cosmos model: the shapes of its weights do "
                f"not fit together"
            ) from None

    def _sizes(self, shapes: Mapping[str, Shape | None]) -> Architecture:
        def get(name: str) -> Shape:
            shape = shapes[f"{name}.weight"]
            if shape is None:
                raise RequestError(
                    f"{self.where} is not a checkpoint of a Cosmos model: it has no {name}.weight "
                    f"nor what that is made of"
                )
            return shape

        width = get("self_attention.q_layernorm")[0]
        query = get("self_attention.linear_proj")[1]
        packed = get("self_attention.linear_qkv")[0]
        text = shapes["cross_attention.linear_kv.weight"]
        action = shapes["action_mlp.0.weight"]
        return Architecture(
            num_layers=self._num_layers(),
            hidden_size=get("embedding.word_embeddings")[1],
            ffn_hidden_size=get("mlp.linear_fc2")[1],
            num_attention_heads=query // width,
            num_query_groups=(packed - query) // (2 * width),
            kv_channels=width,
            vocab_size=get("embedding.word_embeddings")[0],
            output_vocab_size=get("output_layer")[0],
            context_width=text[1] if text else None,
            action_width=action[1] if action else None,
        )


class PublishedWeights(Weights):
    """Tensors by their published names: a state dict, or a file whose tensors are lazy."""

    def __init__(self, tensors: Mapping[str, Any], where: str) -> None:
        super().__init__(where)
        self._tensors = tensors
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def expect(self, model: Architecture, may_be_new: bool = False) -> None:
        """As in :class:`Weights`."""
        wanted = published_shapes(model)
        if may_be_new:
            wanted = {n: s for n, s in wanted.items() if n in self._shapes or not is_new(n)}
        compare_shapes(self._shapes, wanted, self.where)

    def read(self, weight: Weight) -> Tensor:
        """As in :class:`Weights`."""
        return weight.pack([self._tensors[part][...] for part in weight.parts])

    def dtype(self) -> torch.dtype:
        """As in :class:`Weights`."""
        return _common({tensor.dtype for tensor in self._tensors.values()}, self.where)

    def has(self, weight: Weight) -> bool:
        """As in :class:`Weights`."""
        return all(part in self._shapes for part in weight.parts)

    def _shape(self, weight: Weight) -> Shape | None:
        return packed_shape(weight, self._shapes) if self.has(weight) else None

    def _num_layers(self) -> int:
        found = (re.match(r"model\.layers\.(\d+)\.", name) for name in self._shapes)
        return 1 + max((int(m[1]) for m in found if m), default=-1)


#: PyTorch's magic number, pickled.
_OLD_FORMAT = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)


def _open_torch_file(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as f:
        old = f.read(len(_OLD_FORMAT)) == _OLD_FORMAT
    if old:
        raise RequestError(
            f"{path} is in the format of PyTorch before 1.6, which cannot be mapped; load it with "
            f"weights_only=True and save it again with a newer one"
        )
    try:
        # BytesIO: what Transformer Engine keeps beside its weights.
        with torch.serialization.safe_globals([io.BytesIO]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise RequestError(
            f"{path} holds more than tensors, which is not loaded: it could run code"
        ) from None
    except PermissionError:
        raise
    except Exception as e:
        # A damaged pickle raises nearly anything.
        raise RequestError(f"{path} is damaged or not a PyTorch file: {_first_line(e)}") from None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        # As training with NVIDIA's own code saves it, and that code reads both.
        content = content["model"]
    if isinstance(content, dict):
        content = {n: t for n, t in content.items() if not str(n).endswith("_extra_state")}
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and _is_dense(tensor) for name, tensor in content.items()
    ):
        raise RequestError(f"{path} is not a mapping of names to tensors")
    return {name: tensor.detach() for name, tensor in content.items()}


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


class _SafeTensors(Mapping[str, Any]):
    """Tensors of one safetensors file, or of all in a folder; values are lazy slices."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._slices: dict[str, _LazySlice] = {}
        for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
            try:
                with open(file, "rb"):
                    # The library calls a file that may not be read one that is not there.
                    opened = safe_open(file, framework="pt")
                names = opened.keys()
                self._slices |= {name: _LazySlice(opened, name) for name in names}
            except PermissionError:
                raise
            except (SafetensorError, OSError) as e:
                raise RequestError(
                    f"{file} is damaged or not a safetensors file: {_first_line(e)}"
                ) from None

    def __getitem__(self, name: str) -> _LazySlice:
        return self._slices[name]

    def __iter__(self) -> Any:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)


class _LazySlice:
    def __init__(self, opened: Any, name: str) -> None:
        self._slice = opened.get_slice(name)
        self.shape = tuple(self._slice.get_shape())
        self.dtype = (self._slice[:0] if self.shape else opened.get_tensor(name)).dtype

    def __getitem__(self, index: Any) -> Tensor:
        tensor: Tensor = self._slice[index]
        return tensor


class Array(Protocol):
    """A tensor of a NeMo checkpoint, whatever the format."""

    shape: Shape
    dtype: torch.dtype

    def read(self, index: int | None) -> Tensor:
        """The whole, or the part at ``index`` of its first axis."""


class NemoWeights(Weights):
    """A NeMo checkpoint of any layout, its weights in the folder or below ``weights/``.

    On the Hub it lies in ``nemo/``, beside other files.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        places = (path / "weights", path / "nemo" / "weights", path / "nemo", path)
        folder = next(p for p in places if p.is_dir())
        self._arrays: dict[str, tuple[Array, int | None]] = {}
        self._rows: dict[str, int] = {}
        for name, array in _open_arrays(folder).items():
            self._add(name.removeprefix("module."), array)

    def _add(self, name: str, array: Array) -> None:
        """Note an array under the names of the layers' weights that it holds."""
        if name.startswith("optimizer.") or "_extra_state" in name:
            # Optimizer's state; and what Transformer Engine keeps beside its weights for fp8.
            return
        alone = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
        stacked = re.fullmatch(r"decoder\.layers\.(.+)", name)
        if alone:
            self._arrays[_numbered(alone[2], int(alone[1]))] = (array, None)
        elif stacked:
            for layer in range(array.shape[0] if array.shape else 0):
                self._arrays[_numbered(stacked[1], layer)] = (array, layer)
        else:
            self._arrays[name] = (array, None)

    def expect(self, model: Architecture, may_be_new: bool = False) -> None:
        """As in :class:`Weights`."""
        shapes = published_shapes(model)
        wanted = {
            _key(w): packed_shape(w, shapes)
            for w in weights_of(model)
            if self.has(w) or not (may_be_new and is_new(w.name))
        }
        found = {key: self._stored_shape(key) for key in self._arrays}
        for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
            rows = wanted[key][0]
            if found.get(key) and 0 <= found[key][0] - rows < _VOCABULARY_PADDING:
                self._rows[key] = rows
                found[key] = (rows, *found[key][1:])
        compare_shapes(found, wanted, self.where)

    def read(self, weight: Weight) -> Tensor:
        """As in :class:`Weights`."""
        key = _key(weight)
        array, index = self._arrays[key]
        try:
            return array.read(index)[: self._rows.get(key)]
        except Exception as e:
            # A damaged pickle raises nearly anything.
            raise RequestError(
                f"{self.where}: cannot read {key}, the checkpoint is damaged: {_first_line(e)}"
            ) from None

    def dtype(self) -> torch.dtype:
        """As in :class:`Weights`."""
        return _common({array.dtype for array, _ in self._arrays.values()}, self.where)

    def has(self, weight: Weight) -> bool:
        """As in :class:`Weights`."""
        return _key(weight) in self._arrays

    def _stored_shape(self, key: str) -> Shape:
        array, index = self._arrays[key]
        return array.shape if index is None else array.shape[1:]

    def _shape(self, weight: Weight) -> Shape | None:
        return self._stored_shape(_key(weight)) if self.has(weight) else None

    def _num_layers(self) -> int:
        found = (re.match(r"decoder\.layers\.(\d+)\.", key) for key in self._arrays)
        return 1 + max((int(m[1]) for m in found if m), default=-1)


def _numbered(name: str, layer: int) -> str:
    return f"decoder.layers.{layer}.{FUSED_NORMS.get(name, name)}"


def _key(weight: Weight) -> str:
    return weight.name if weight.layer is None else _numbered(weight.name, weight.layer)


def _open_arrays(folder: Path) -> Mapping[str, Array]:
    from cosmos_hpc.models import distributed_formats

    described = folder / "metadata.json"
    try:
        backend = json.loads(described.read_text())["sharded_backend"]
    except FileNotFoundError:
        # Written by other tools, or incompletely; the index itself decides.
        backend = "torch_dist" if (folder / ".metadata").is_file() else None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise RequestError(f"{described} does not say in which format the weights are") from None
    if backend == "torch_dist":
        return distributed_formats.open_torch_dist(folder)
    if backend == "zarr":
        return distributed_formats.open_zarr(folder)
    known = "torch_dist and zarr can be read"
    if backend is None:
        raise RequestError(f"{folder} holds no distributed checkpoint ({known})")
    raise RequestError(f"{folder} holds a checkpoint of format {backend!r}; {known}")


#: Others would have to be scaled or rounded to become weights.
_DTYPES = {torch.bfloat16, torch.float16, torch.float32, torch.float64}


def _common(dtypes: set[torch.dtype], where: str) -> torch.dtype:
    others = dtypes - _DTYPES
    if others:
        raise RequestError(f"{where} holds weights of {others.pop()}, which cannot be converted")
    return functools.reduce(torch.promote_types, dtypes)


def _first_line(error: Exception) -> str:
    """What an error of a library says, without its advice."""
    first = str(error).strip().partition("\n")[0]
    return first.partition(". ")[0] or type(error).__name__


def open_weights(path: Path | str) -> Weights:
    """Open published weights or a NeMo checkpoint; what it is follows from its content.

    Args:
        path: a ``.pt`` or ``.safetensors`` file, a folder with ``model.pt`` or safetensors, or the
            folder of a NeMo checkpoint, or one with ``nemo/``.

    Raises:
        RequestError: it is none of these, is damaged, or may not be read.
    """
    try:
        return _open(Path(path))
    except PermissionError as e:
        raise RequestError(f"cannot read {e.filename or path}: permission denied") from None


def _open(path: Path) -> Weights:
    if path.is_dir() and (path / "model.pt").is_file():
        path /= "model.pt"
    if path.is_dir():
        if any(path.glob("*.safetensors")):
            return PublishedWeights(_SafeTensors(path), str(path))
        return NemoWeights(path)
    if not path.exists():
        raise RequestError(f"there is no {path}")
    if path.suffix == ".safetensors":
        return PublishedWeights(_SafeTensors(path), str(path))
    if path.suffix == ".pt":
        return PublishedWeights(_open_torch_file(path), str(path))
    raise RequestError(f"{path} is neither a .pt nor a .safetensors file, nor a folder")
