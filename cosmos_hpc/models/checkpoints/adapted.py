"""Checkpoints of low-rank adapters, read as their base weights with the adapters merged in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.adapters import linear_layers
from cosmos_hpc.models.checkpoints.nemo_folders import NemoWeights
from cosmos_hpc.models.checkpoints.stored import Weights
from cosmos_hpc.models.checkpoints.weights import Weight, compare_shapes, is_new, weights_of
from cosmos_hpc.models.config import Architecture
from cosmos_hpc.models.shapes import Shape

#: NeMo's, beside the weights: where the base weights lie. Rank and alpha are this package's.
_DESCRIPTION = "adapter_metadata.json"


def adapter_description(path: Path) -> Path | None:
    """The file that marks a folder of adapters; None for a folder of weights."""
    found = (path / "weights" / _DESCRIPTION, path / _DESCRIPTION)
    return next((file for file in found if file.is_file()), None)


def open_adapted(
    path: Path, description: Path, base: Path | None, open_base: Callable[[Path], Weights]
) -> AdaptedWeights:
    """Open adapters and their base weights.

    Args:
        path: folder of the checkpoint.
        description: its file that says what belongs to it.
        base: where the other weights lie now; None: where they lay when it was written.
        open_base: opens those.

    Raises:
        RequestError: something is damaged, or the base weights are gone.
    """
    try:
        said = json.loads(description.read_text())
        place, scale = str(said["model_ckpt_path"]), float(said["alpha"]) / int(said["rank"])
    except (ValueError, KeyError, TypeError, ZeroDivisionError, UnicodeDecodeError):
        raise RequestError(
            f"{description} does not say model_ckpt_path, rank and alpha of the adapters"
        ) from None
    where = base or Path(place)
    if not where.exists():
        source = said.get("source", place)
        named = f" ({source})" if source != place else ""
        lost = f"there is no {where}" if base else f"their base weights {where}{named} are gone"
        raise RequestError(
            f"{path} holds adapters, and {lost}; bring them back, or say where they are with "
            f"base=PATH"
        )
    return AdaptedWeights(NemoWeights(path), open_base(where), int(said["rank"]), scale)


class AdaptedWeights(Weights):
    """W + alpha / rank * B A for linear layers with an adapter, and all others as they are.

    Sums are float32, whatever the base weights are stored in. What the checkpoint holds in full, as
    the head for actions, comes from there.

    Args:
        stored: the adapters.
        base: the weights beside them.
        rank: inner width of the adapters.
        scale: alpha / rank.
    """

    def __init__(self, stored: NemoWeights, base: Weights, rank: int, scale: float) -> None:
        super().__init__(f"{stored.where} beside {base.where}")
        self._stored, self._base = stored, base
        self._rank, self._scale = rank, scale

    def expect(self, model: Architecture, may_be_new: bool = False) -> None:
        """As in :class:`Weights`."""
        found = {key: self._stored.shape(key) for key in self._stored.names() if _is_adapter(key)}
        names = {key.split(".", 3)[3].partition(".adapter.")[0] for key in found}
        wanted: dict[str, Shape] = {}
        for name, (rows, columns) in linear_layers(model).items():
            for layer in range(model.num_layers) if name in names else ():
                first, second = _keys(layer, name)
                wanted |= {first: (self._rank, columns), second: (rows, self._rank)}
        compare_shapes(found, wanted, self._stored.where)
        self._base.expect(model, may_be_new=True)
        if not may_be_new:
            missing = [w.name for w in weights_of(model) if is_new(w.name) and not self.has(w)]
            if missing:
                raise RequestError(f"{self.where} has no {missing[0]}")

    def read(self, weight: Weight) -> Tensor:
        """As in :class:`Weights`; float32 where an adapter is added."""
        if self._stored.has(weight):
            return self._stored.read(weight)
        value = self._base.read(weight)
        if weight.layer is None:
            return value
        first, second = _keys(weight.layer, weight.name.removesuffix(".weight"))
        if first not in self._stored.names():
            return value
        a, b = (self._stored.read_key(key).float() for key in (first, second))
        return torch.addmm(value.float(), b, a, alpha=self._scale)

    def dtype(self) -> torch.dtype:
        """That of the base weights."""
        return self._base.dtype()

    def has(self, weight: Weight) -> bool:
        """As in :class:`Weights`."""
        return self._stored.has(weight) or self._base.has(weight)

    def _shape(self, weight: Weight) -> Shape | None:
        return (self._stored if self._stored.has(weight) else self._base)._shape(weight)

    def _layers(self) -> set[int]:
        return self._base._layers()


def _is_adapter(key: str) -> bool:
    return ".adapter." in key


def _keys(layer: int, name: str) -> tuple[str, str]:
    """Names of A and B of a linear layer."""
    start = f"decoder.layers.{layer}.{name}.adapter"
    return f"{start}.linear_in.weight", f"{start}.linear_out.weight"
