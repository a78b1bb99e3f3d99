"""Published weights: a ``model.pt``, or safetensors; tensors are mapped, not loaded.

Nothing is unpickled but tensors.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.checkpoints.stored import Weights, common_dtype, first_line, layers_in
from cosmos_hpc.models.checkpoints.weights import Weight, compare_shapes, is_new, packed_shape
from cosmos_hpc.models.config import Architecture
from cosmos_hpc.models.shapes import Shape, published_shapes


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
        return common_dtype({tensor.dtype for tensor in self._tensors.values()}, self.where)

    def has(self, weight: Weight) -> bool:
        """As in :class:`Weights`."""
        return all(part in self._shapes for part in weight.parts)

    def _shape(self, weight: Weight) -> Shape | None:
        return packed_shape(weight, self._shapes) if self.has(weight) else None

    def _layers(self) -> set[int]:
        return layers_in(self._shapes, "model.layers.")


#: PyTorch's magic number, pickled.
_OLD_FORMAT = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)


def open_torch_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.pt`` file by name.

    Raises:
        RequestError: it is damaged, or holds something else.
    """
    with open(path, "rb") as f:
        old = f.read(len(_OLD_FORMAT)) == _OLD_FORMAT
    if old:
        raise RequestError(
            f"{path} is in the format of PyTorch before 1.6, which cannot be mapped; load it with "
            f"weights_only=True and save it again with a newer one"
        )
    if not zipfile.is_zipfile(path):
        raise RequestError(f"{path} is damaged or not a PyTorch file")
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
        raise RequestError(f"{path} is damaged or not a PyTorch file: {first_line(e)}") from None
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


class SafeTensors(Mapping[str, Any]):
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
                    f"{file} is damaged or not a safetensors file: {first_line(e)}"
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
