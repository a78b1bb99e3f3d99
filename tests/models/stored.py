"""Checkpoints as others write them, and comparing what was read bit by bit."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import torch
import yaml

from cosmos_hpc.models import ModelConfig
from cosmos_hpc.models.checkpoints.weights import FUSED_NORMS, weights_of
from cosmos_hpc.models.shapes import published_shapes
from tests.models.checkpoints.test_published import ACTION, TEXT, YARN

#: Recipes of each variant: shipped tiny ones, which a recipe of a test makes smaller still.
BASES = {
    "4b": "ar_tiny",
    "12b": "ar_tiny",
    "5b": "ar_tiny_v2w",
    "13b": "ar_tiny_v2w",
    "5b action": "ar_tiny_action",
    "13b action": "ar_tiny_action",
}
SMALL = {
    "num_layers": 2,
    "hidden_size": 16,
    "ffn_hidden_size": 24,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 8,
}


def recipe_file(folder: Path, variant: str, **sizes) -> Path:
    """A recipe of a small model of a variant."""
    yarn = {name: list(v) if isinstance(v, tuple) else v for name, v in YARN.items()}
    model = {**SMALL, **(yarn if variant.startswith("1") else {}), **sizes}
    path = folder / f"small_{variant.replace(' ', '_')}.yaml"
    path.write_text(yaml.safe_dump({"base": BASES[variant], "model": model}))
    return path


def small_model(variant: str = "4b", **sizes) -> ModelConfig:
    """A model smaller than any recipe's, for what needs no recipe."""
    text = TEXT if variant.startswith(("5", "13")) else {}
    action = ACTION if "action" in variant else {}
    base = {**SMALL, "vocab_size": 80, "output_vocab_size": 80, "latent_shape": (2, 3, 4)}
    return ModelConfig(**{**base, **text, **action, **sizes})


def any_bits(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Published weights of random bits: infinities, NaNs of all kinds and denormals among them."""
    generator = torch.Generator().manual_seed(3)
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    low, high = torch.iinfo(kind).min, torch.iinfo(kind).max
    return {
        name: torch.randint(low, high, shape, generator=generator, dtype=kind).view(dtype)
        for name, shape in published_shapes(config).items()
    }


def assert_same(found, expected):
    """Names, dtypes, shapes and every bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        got = found[name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
        bits = [t.contiguous().flatten().view(torch.uint8) for t in (got, tensor)]
        assert torch.equal(*bits), name


def megatron_arrays(
    tensors, config, prefix="module.", stacked=True, fused=True, pad_to=None
) -> dict[str, torch.Tensor]:
    """Arrays of a distributed checkpoint with the values of published tensors."""
    layers: dict[str, list[torch.Tensor]] = {}
    arrays = {}
    for weight in weights_of(config):
        packed = weight.pack([tensors[part] for part in weight.parts])
        if weight.layer is None:
            if pad_to and weight.name in (
                "embedding.word_embeddings.weight",
                "output_layer.weight",
            ):
                rows = packed.new_ones(pad_to - packed.shape[0], packed.shape[1])
                packed = torch.cat([packed, rows])
            arrays[prefix + weight.name] = packed
            continue
        name = FUSED_NORMS.get(weight.name, weight.name) if fused else weight.name
        if stacked:
            layers.setdefault(name, []).append(packed)
        else:
            arrays[f"{prefix}decoder.layers.{weight.layer}.{name}"] = packed
    arrays |= {f"{prefix}decoder.layers.{n}": torch.stack(parts) for n, parts in layers.items()}
    return arrays


def describe(folder: Path, backend: str) -> None:
    """The file that says in which format a distributed checkpoint is."""
    described = {"sharded_backend": backend, "sharded_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(described))


def write_torch_dist(folder: Path, arrays) -> Path:
    """Arrays in PyTorch's distributed format, written by PyTorch alone."""
    import torch.distributed.checkpoint as dcp

    folder.mkdir(parents=True)
    values = {name: io.BytesIO(v) if isinstance(v, bytes) else v for name, v in arrays.items()}
    dcp.save(values, checkpoint_id=folder, no_dist=True)
    describe(folder, "torch_dist")
    return folder


def write_zarr(folder: Path, arrays) -> Path:
    """Arrays as Megatron's zarr strategy writes them, which needs a GPU to run."""
    import tensorstore  # noqa: F401 - teaches NumPy the name bfloat16
    import zarr

    folder.mkdir(parents=True)
    for name, tensor in arrays.items():
        if isinstance(tensor, bytes):
            (folder / name).mkdir()
            (folder / name / "shard_0_1.pt").write_bytes(tensor)
            continue
        half = tensor.dtype == torch.bfloat16
        values = tensor.view(torch.int16).numpy() if half else tensor.numpy()
        values = values.view("bfloat16") if half else values
        array = zarr.create(
            values.shape,
            dtype=values.dtype,
            store=str(folder / name),
            # As two tensor-parallel ranks and a layer at a time.
            chunks=tuple(max(1, size // 2) for size in values.shape),
            compressor=None,
            fill_value=None,
            write_empty_chunks=True,
        )
        if half:
            array._dtype = values.dtype
            array.store[".zarray"] = array.store[".zarray"].replace(b"<V2", b"bfloat16")
        array[...] = values
    describe(folder, "zarr")
    return folder


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@contextlib.contextmanager
def as_nobody():
    """Without the rights of root, where the tests have them."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)
