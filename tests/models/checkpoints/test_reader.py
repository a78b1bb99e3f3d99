"""Checkpoints of others: every layout that NVIDIA's folders have had, on every kind of disk."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from msgspec.structs import asdict

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.checkpoints.weights import weights_of
from tests.models.stored import (
    any_bits,
    as_nobody,
    assert_same,
    describe,
    megatron_arrays,
    small_model,
    write_torch_dist,
    write_zarr,
)

#: What lies in real folders beside the weights.
EXTRA = {
    "module.decoder.layers.self_attention.core_attention._extra_state/shard_0_2": b"fp8",
    "module.decoder.layers.0.mlp.linear_fc1._extra_state": b"",
    "optimizer.state.exp_avg.module.output_layer.weight": torch.ones(3),
    "module.decoder.final_layernorm._extra_state": torch.ones(0),
}


def check(path, config, expected):
    """Sizes and all weights of ``path`` are those of published tensors."""
    weights = open_weights(path)
    found = asdict(weights.sizes())
    shown = {"num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"}
    shown |= {"num_query_groups", "kv_channels", "context_width", "action_width"}
    assert {n: found[n] for n in shown} == {n: getattr(config, n) for n in shown}
    weights.expect(config)
    assert_same(
        {w.module_name: weights.read(w) for w in weights_of(config)},
        {w.module_name: w.pack([expected[p] for p in w.parts]) for w in weights_of(config)},
    )
    assert weights.dtype() == next(iter(expected.values())).dtype


@pytest.mark.parametrize("variant", ["4b", "5b", "5b action"])
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("place, prefix", [("weights", "module."), (".", "")])
def test_layouts_of_nemo_checkpoints(tmp_path, variant, stacked, fused, place, prefix):
    config = small_model(variant)
    tensors = any_bits(config)
    arrays = megatron_arrays(tensors, config, prefix, stacked, fused)
    write_torch_dist(tmp_path / "nemo" / place, arrays)
    (tmp_path / "nemo" / "context").mkdir()
    check(tmp_path / "nemo", config, tensors)


@pytest.mark.parametrize("place", ["nemo", "nemo/weights"])
def test_a_repository_of_the_hub(tmp_path, place):
    """What ``cosmos-hpc download`` prints, with or without the published file beside it."""
    config = small_model()
    tensors = any_bits(config)
    write_torch_dist(tmp_path / place, megatron_arrays(tensors, config))
    (tmp_path / "config.json").write_text("{}")
    check(tmp_path, config, tensors)
    others = {name: tensor.float() for name, tensor in tensors.items()}
    torch.save(others, tmp_path / "model.pt")
    check(tmp_path, config, others)


@pytest.mark.parametrize("write", [write_torch_dist, write_zarr])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_else_lies_in_a_checkpoint_is_passed_over(tmp_path, write, dtype):
    config = small_model("13b")
    tensors = any_bits(config, dtype)
    extra = EXTRA
    if write is write_zarr:  # folders of objects
        extra = {name.partition("/")[0]: value for name, value in EXTRA.items()}
        extra.pop("module.decoder.final_layernorm._extra_state")
    write(tmp_path / "weights", {**megatron_arrays(tensors, config), **extra})
    check(tmp_path, config, tensors)


@pytest.mark.parametrize("write", [write_torch_dist, write_zarr])
def test_rows_that_pad_vocabularies_are_dropped(tmp_path, write):
    config = small_model("5b")
    tensors = any_bits(config)
    write(tmp_path / "weights", megatron_arrays(tensors, config, pad_to=128))
    assert open_weights(tmp_path).sizes().vocab_size == 128
    check(tmp_path, config, tensors)


def test_more_rows_than_padding_are_another_model(tmp_path):
    config = small_model()
    write_torch_dist(tmp_path / "nemo", megatron_arrays(any_bits(config), config, pad_to=80 + 1024))
    with pytest.raises(RequestError, match=r"2 misshapen .embedding.word_embeddings.weight is .11"):
        open_weights(tmp_path / "nemo").expect(config)


def test_fewer_rows_are_another_model(tmp_path):
    config = small_model()
    write_torch_dist(tmp_path / "nemo", megatron_arrays(any_bits(config), config))
    with pytest.raises(RequestError, match=r"1 misshapen .output_layer.weight is .80, 16., not .8"):
        open_weights(tmp_path / "nemo").expect(small_model(output_vocab_size=81))


def test_without_metadata_json_the_index_decides(tmp_path):
    config = small_model()
    tensors = any_bits(config)
    write_torch_dist(tmp_path / "weights", megatron_arrays(tensors, config))
    (tmp_path / "weights" / "metadata.json").unlink()
    check(tmp_path, config, tensors)


def test_a_checkpoint_with_a_hole_in_an_array(tmp_path):
    """As of a rank that never wrote."""
    config = small_model()
    write_zarr(tmp_path / "weights", megatron_arrays(any_bits(config), config))
    (tmp_path / "weights" / "module.output_layer.weight" / "1.0").unlink()
    weights = open_weights(tmp_path)
    weights.expect(config)
    output = next(w for w in weights_of(config) if w.name == "output_layer.weight")
    with pytest.raises(RequestError, match=r"read output_layer.weight, .* 1 of its 4 files are mi"):
        weights.read(output)


def test_a_short_file_of_an_array(tmp_path):
    config = small_model()
    write_zarr(tmp_path / "weights", megatron_arrays(any_bits(config), config))
    chunk = tmp_path / "weights" / "module.output_layer.weight" / "1.0"
    chunk.write_bytes(chunk.read_bytes()[:-2])
    weights = open_weights(tmp_path)
    weights.expect(config)
    output = next(w for w in weights_of(config) if w.name == "output_layer.weight")
    with pytest.raises(RequestError, match=r"cannot read output_layer.weight, the checkpoint is d"):
        weights.read(output)


def files_of(folder, kind, tensors, config):
    """A checkpoint of a kind in a folder; the path to open."""
    from safetensors.torch import save_file

    if kind == "pt":
        torch.save(tensors, folder / "model.pt")
    elif kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    elif kind == "shards":
        names = list(tensors)
        for n in range(2):
            part = {name: tensors[name] for name in names[n::2]}
            save_file(part, folder / f"model-{n + 1:05}-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text("{}")
    else:
        write = write_zarr if kind == "zarr" else write_torch_dist
        write(folder / "weights", megatron_arrays(tensors, config))
    return folder


KINDS = ["pt", "safetensors", "shards", "torch_dist", "zarr"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_of_the_hub_is_links(tmp_path, kind):
    """Names there are symbolic links to files that are named after their content."""
    config = small_model()
    tensors = any_bits(config)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs").mkdir()
    folder = files_of(tmp_path / "snapshot", kind, tensors, config)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blob = tmp_path / "blobs" / f"{number:040x}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    check(folder, config, tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_on_a_read_only_disk(small_disk, kind):
    config = small_model()
    tensors = any_bits(config)
    folder = files_of(small_disk, kind, tensors, config)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    check(folder, config, tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_may_not_be_read(kind):
    config = small_model()
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = files_of(Path(name), kind, any_bits(config), config)
        folder.chmod(0o755)
        hidden = sorted(p for p in folder.rglob("*") if p.is_file() and p.name[0] not in "_0123456")
        open_weights(folder)  # imports what it needs
        for path in hidden:
            path.chmod(0)
        with as_nobody(), pytest.raises(RequestError, match="[Pp]ermission denied"):
            open_weights(folder)


def test_a_state_dict_of_parameters_below_model(tmp_path):
    """NVIDIA's own code reads both, and training saves parameters."""
    config = small_model("5b")
    tensors = any_bits(config)
    kept = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    torch.save({"model": kept, "step": 3}, tmp_path / "model.pt")
    check(tmp_path, config, tensors)
    assert not any(
        open_weights(tmp_path).read(weight).requires_grad for weight in weights_of(config)
    )


def test_tensors_that_share_one_storage(tmp_path):
    """Views of one tensor: what is read is the part, not the whole."""
    config = small_model()
    tensors = any_bits(config)
    name = "model.layers.0.attention.w{}.weight"
    joined = torch.cat([tensors[name.format(x)] for x in "qkv"])
    rows = [tensors[name.format(x)].shape[0] for x in "qkv"]
    views = dict(zip([name.format(x) for x in "qkv"], joined.split(rows), strict=True))
    torch.save({**tensors, **views, "model.norm.weight": joined[:, 0][:16]}, tmp_path / "model.pt")
    check(tmp_path, config, {**tensors, "model.norm.weight": joined[:, 0][:16].clone()})


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_numbers_that_are_no_weights(dtype):
    from cosmos_hpc.models.checkpoints.reader import PublishedWeights

    config = small_model()
    tensors = any_bits(config) | {"model.norm.weight": torch.zeros(16).to(dtype)}
    weights = PublishedWeights(tensors, "x.pt")
    with pytest.raises(RequestError, match=f"x.pt holds weights of {dtype}, which cannot be conv"):
        weights.dtype()


@pytest.mark.parametrize(
    "first, second, common",
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_dtypes_that_differ_become_one_that_holds_both(tmp_path, first, second, common):
    config = small_model()
    tensors = {n: t.to(first) for n, t in any_bits(config).items()}
    torch.save(tensors | {"model.norm.weight": torch.ones(16, dtype=second)}, tmp_path / "model.pt")
    assert open_weights(tmp_path).dtype() == common


def test_unknown_formats_are_named(tmp_path):
    describe(tmp_path, "fsdp_dtensor")
    with pytest.raises(RequestError, match=r"format 'fsdp_dtensor'; torch_dist and zarr can be re"):
        open_weights(tmp_path)


def test_sizes_that_do_not_fit_together(tmp_path):
    config = small_model()
    tensors = any_bits(config)
    tensors["model.layers.0.attention.q_norm.weight"] = torch.zeros(0)
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(RequestError, match="the shapes of its weights do not fit together"):
        open_weights(tmp_path).sizes()


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_any_tensor_may_have_too_few_axes(tmp_path, kind):
    config = small_model("5b", num_layers=1)
    tensors = any_bits(config)
    for number, name in enumerate(tensors):
        folder = tmp_path / str(number)
        folder.mkdir()
        files_of(folder, kind, tensors | {name: torch.zeros(())}, config)
        weights = open_weights(folder)
        with pytest.raises(RequestError, match="misshapen"):
            weights.expect(config)
        with pytest.raises(RequestError, match="misshapen|do not fit together"):
            weights.expect(weights.sizes())


def test_any_array_may_have_too_few_axes(tmp_path):
    config = small_model("5b", num_layers=1)
    arrays = megatron_arrays(any_bits(config), config)
    for number, name in enumerate(arrays):
        changed = arrays | {name: torch.zeros(())}
        weights = open_weights(write_torch_dist(tmp_path / str(number), changed))
        with pytest.raises(RequestError, match="misshapen|missing"):
            weights.expect(config)
        with pytest.raises(RequestError, match="mis|unexpected|do not fit|is not a check"):
            weights.expect(weights.sizes())


def test_an_index_of_bytes_alone(tmp_path):
    write_torch_dist(tmp_path / "weights", {"x": b"y"})
    with pytest.raises(RequestError, match="is not a checkpoint of a Cosmos model: it has no"):
        open_weights(tmp_path).sizes()
