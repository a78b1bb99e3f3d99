"""Checkpoints of adapters are read as the weights that they make of those they belong to."""

import json

import pytest
import torch

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.adapters import linear_layers
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.checkpoints.weights import weights_of
from cosmos_hpc.models.shapes import ACTION_MLP, published_shapes
from cosmos_hpc.worker.convert import Conversion, convert
from tests.models.stored import recipe_file, small_model, write_torch_dist

RANK, ALPHA = 3, 6.0


def random_weights(config, dtype=torch.float32):
    shapes = published_shapes(config).items()
    return {name: torch.randn(shape).to(dtype) / 10 for name, shape in shapes}


def random_adapters(config, targets=None):
    """A and B of the linear layers, each stacked over the layers."""
    return {
        f"module.decoder.layers.{name}.adapter.{side}.weight": torch.randn(
            config.num_layers, *((RANK, columns) if side == "linear_in" else (rows, RANK))
        )
        for name, (rows, columns) in linear_layers(config, targets).items()
        for side in ("linear_in", "linear_out")
    }


def write_adapters(folder, arrays, base, **more):
    write_torch_dist(folder / "weights", arrays)
    described = {"model_ckpt_path": str(base), "rank": RANK, "alpha": ALPHA, **more}
    (folder / "weights" / "adapter_metadata.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    ("variant", "targets"), [("4b", None), ("5b action", None), ("5b", ["linear_kv"])]
)
def test_merged_weights_are_w_and_alpha_over_rank_times_b_a(tmp_path, variant, targets):
    config = small_model(variant)
    tensors, arrays = random_weights(config), random_adapters(config, targets)
    whole = {name: tensors[name] for name in ACTION_MLP if name in tensors}
    # Base checkpoints have no head for actions, which is trained in full.
    base = {name: tensor for name, tensor in tensors.items() if name not in whole}
    torch.save(base, tmp_path / "base.pt")
    arrays |= {f"module.{name}": tensor + 1 for name, tensor in whole.items()}
    folder = write_adapters(tmp_path / "adapters", arrays, tmp_path / "base.pt")
    weights = open_weights(folder)
    weights.expect(config)
    assert (weights.sizes().num_layers, weights.dtype()) == (config.num_layers, torch.float32)
    merged = 0
    for weight in weights_of(config):
        expected = weight.pack([tensors[part] for part in weight.parts]).double()
        key = f"module.decoder.layers.{weight.name.removesuffix('.weight')}.adapter"
        if weight.name in whole:
            expected = expected + 1
        elif f"{key}.linear_in.weight" in arrays and weight.layer is not None:
            a, b = (arrays[f"{key}.{side}.weight"] for side in ("linear_in", "linear_out"))
            expected += ALPHA / RANK * (b[weight.layer].double() @ a[weight.layer].double())
            merged += 1
        torch.testing.assert_close(weights.read(weight).double(), expected, rtol=1e-6, atol=1e-6)
    assert merged == config.num_layers * len(linear_layers(config, targets))


def test_convert_merges_in_the_dtype_of_the_base_weights(tmp_path):
    recipe = recipe_file(tmp_path, "4b")
    from cosmos_hpc.config.recipes import load_recipe

    config = load_recipe(str(recipe)).model_for_clips()
    torch.save(random_weights(config, torch.bfloat16), tmp_path / "base.pt")
    arrays = random_adapters(config)
    folder = write_adapters(tmp_path / "adapters", arrays, tmp_path / "base.pt")
    settings = {"recipe": str(recipe)}
    convert(folder, tmp_path / "as_base.pt", Conversion(**settings))
    convert(folder, tmp_path / "exact.pt", Conversion(**settings, dtype="float32"))
    half, exact = (torch.load(tmp_path / f"{n}.pt") for n in ("as_base", "exact"))
    assert all(torch.equal(half[name], exact[name].bfloat16()) for name in half)
    name = "model.layers.1.feed_forward.w2.weight"
    changed = exact[name] - torch.load(tmp_path / "base.pt")[name].float()
    start = "module.decoder.layers.mlp.linear_fc2.adapter"
    a, b = (arrays[f"{start}.{side}.weight"][1] for side in ("linear_in", "linear_out"))
    torch.testing.assert_close(changed, ALPHA / RANK * b @ a, rtol=1e-4, atol=1e-5)
    # Adapters beside adapters: training may go on from them.
    twice = write_adapters(tmp_path / "twice", arrays, folder)
    layer = next(w for w in weights_of(config) if w.name == "mlp.linear_fc2.weight")
    more = open_weights(twice).read(layer) - open_weights(folder).read(layer)
    first = [arrays[f"{start}.{side}.weight"][0] for side in ("linear_in", "linear_out")]
    torch.testing.assert_close(more, ALPHA / RANK * first[1] @ first[0], rtol=1e-4, atol=1e-4)


def test_what_is_missing_or_does_not_fit_is_said(tmp_path):
    config = small_model()
    arrays, base = random_adapters(config), tmp_path / "base.pt"
    folder = write_adapters(tmp_path / "a", arrays, base, source="nvidia/Some-Model")
    with pytest.raises(RequestError, match=r"a holds adapters, and their base weights .*base.pt "):
        open_weights(folder)
    with pytest.raises(RequestError, match=r"\(nvidia/Some-Model\) are gone; .* with base=PATH"):
        open_weights(folder)
    torch.save(random_weights(config), tmp_path / "moved.pt")
    open_weights(folder, tmp_path / "moved.pt").expect(config)
    with pytest.raises(RequestError, match="there is no .*nowhere"):
        open_weights(folder, tmp_path / "nowhere")
    with pytest.raises(RequestError, match="moved.pt holds no adapters, and base="):
        open_weights(tmp_path / "moved.pt", tmp_path / "moved.pt")
    with pytest.raises(RequestError, match="a holds the weights of another model: .*misshapen"):
        open_weights(folder, tmp_path / "moved.pt").expect(small_model(ffn_hidden_size=32))
    (folder / "weights" / "adapter_metadata.json").write_text('{"model_ckpt_path": "x"}')
    with pytest.raises(RequestError, match="does not say model_ckpt_path, rank and alpha"):
        open_weights(folder)
