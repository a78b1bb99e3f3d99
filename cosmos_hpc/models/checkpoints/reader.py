"""The door to weights on disk: what a file or folder is follows from its content."""

from __future__ import annotations

from pathlib import Path

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.checkpoints.adapted import adapter_description, open_adapted
from cosmos_hpc.models.checkpoints.nemo_folders import NemoWeights
from cosmos_hpc.models.checkpoints.places import check_place, readable
from cosmos_hpc.models.checkpoints.published_files import (
    PublishedWeights,
    SafeTensors,
    open_torch_file,
)
from cosmos_hpc.models.checkpoints.stored import Weights


def open_weights(path: Path | str, base: Path | None = None) -> Weights:
    """Open published weights or a NeMo checkpoint; what it is follows from its content.

    A checkpoint of adapters (LoRA) gives the weights that they make of those which they were
    trained beside.

    Args:
        path: a ``.pt`` or ``.safetensors`` file, a folder with ``model.pt`` or safetensors, or the
            folder of a NeMo checkpoint, or one with ``nemo/``.
        base: where the weights beside adapters lie, if no longer where they lay in training.

    Raises:
        RequestError: it is none of these, is damaged, or may not be read; or it holds adapters, and
            the weights beside them are gone.
    """
    with readable(Path(path)):
        return _open(Path(path), base)


def _open(path: Path, base: Path | None = None) -> Weights:
    if path.is_dir() and (path / "model.pt").is_file():
        path /= "model.pt"
    check_place(path)
    description = adapter_description(path)
    if description:
        return open_adapted(path, description, base, _open)
    if base:
        raise RequestError(f"{path} holds no adapters, and base={base} goes with these only")
    if path.is_dir():
        if any(path.glob("*.safetensors")):
            return PublishedWeights(SafeTensors(path), str(path))
        return NemoWeights(path)
    opened = SafeTensors(path) if path.suffix == ".safetensors" else open_torch_file(path)
    return PublishedWeights(opened, str(path))
