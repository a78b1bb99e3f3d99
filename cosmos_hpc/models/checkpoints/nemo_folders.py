"""Weights of NeMo checkpoints: this package's own, NVIDIA's, of any layout and both formats."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.checkpoints.stored import (
    VOCABULARY_PADDING,
    Weights,
    common_dtype,
    first_line,
    layers_in,
)
from cosmos_hpc.models.checkpoints.weights import (
    FUSED_NORMS,
    Weight,
    compare_shapes,
    is_new,
    packed_shape,
    weights_of,
)
from cosmos_hpc.models.config import Architecture
from cosmos_hpc.models.shapes import Shape, published_shapes


class Array(Protocol):
    """A tensor of a NeMo checkpoint, whatever the format."""

    shape: Shape
    dtype: torch.dtype

    def read(self, index: int | None) -> Tensor:
        """The complete weight, or the part at ``index`` of its first axis."""


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
        found = {key: self.shape(key) for key in self._arrays}
        for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
            rows = wanted[key][0]
            if found.get(key) and 0 <= found[key][0] - rows < VOCABULARY_PADDING:
                self._rows[key] = rows
                found[key] = (rows, *found[key][1:])
        compare_shapes(found, wanted, self.where)

    def read(self, weight: Weight) -> Tensor:
        """As in :class:`Weights`."""
        return self.read_key(_key(weight))

    def names(self) -> Set[str]:
        """Names of all that there is, one per layer: ``decoder.layers.3.mlp.linear_fc1.weight``."""
        return self._arrays.keys()

    def read_key(self, key: str) -> Tensor:
        """As :meth:`read`, by the name."""
        array, index = self._arrays[key]
        try:
            return array.read(index)[: self._rows.get(key)]
        except Exception as e:
            # A damaged pickle raises nearly anything.
            raise RequestError(
                f"{self.where}: cannot read {key}, the checkpoint is damaged: {first_line(e)}"
            ) from None

    def dtype(self) -> torch.dtype:
        """As in :class:`Weights`."""
        return common_dtype({array.dtype for array, _ in self._arrays.values()}, self.where)

    def has(self, weight: Weight) -> bool:
        """As in :class:`Weights`."""
        return _key(weight) in self._arrays

    def shape(self, key: str) -> Shape:
        """Shape of what has a name."""
        array, index = self._arrays[key]
        return array.shape if index is None else array.shape[1:]

    def _shape(self, weight: Weight) -> Shape | None:
        return self.shape(_key(weight)) if self.has(weight) else None

    def _layers(self) -> set[int]:
        return layers_in(self._arrays, "decoder.layers.")


def _numbered(name: str, layer: int) -> str:
    return f"decoder.layers.{layer}.{FUSED_NORMS.get(name, name)}"


def _key(weight: Weight) -> str:
    return weight.name if weight.layer is None else _numbered(weight.name, weight.layer)


def _open_arrays(folder: Path) -> Mapping[str, Array]:
    from cosmos_hpc.models.checkpoints import distributed_formats

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
