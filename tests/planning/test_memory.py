"""The model of memory against what GPUs have reported, and against the shapes of real tensors."""

import pytest
from msgspec.structs import asdict, replace

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.planning.layouts import trained_of
from cosmos_hpc.planning.memory import Layout, training_memory

TWO = {"tensor_parallel": 2, "sequence_parallel": True}
FOUR = {"tensor_parallel": 4, "sequence_parallel": True}


def some(layers):
    return {"recompute": "full", "recompute_layers": layers}


@pytest.mark.parametrize(
    ("recipe", "layout", "seen"),
    [
        # torch.cuda.max_memory_allocated on H200s, in GB; see benchmarks/README.md.
        ("ar4b", Layout(), 113.29),
        ("ar4b", Layout(recompute="selective"), 95.68),
        ("ar4b", Layout(recompute="full"), 82.40),
        ("ar4b", Layout(**TWO), 56.89),
        ("ar5b_v2w", Layout(), 132.52),
        ("ar5b_v2w", Layout(recompute="selective"), 114.82),
        ("ar12b", Layout(**TWO, recompute="selective"), 129.53),
        ("ar12b", Layout(**TWO, recompute="full"), 111.10),
        ("ar13b_v2w", Layout(**TWO, recompute="full"), 127.14),
        # With Transformer Engine's layers.
        ("ar4b", Layout(), 111.65),
        ("ar5b_v2w", Layout(recompute="selective"), 111.50),
        ("ar13b_v2w", Layout(**TWO, recompute="full"), 127.17),
    ],
)
def test_within_a_tenth_of_what_was_measured(recipe, layout, seen):
    model = load_recipe(recipe).model_for_clips()
    predicted = training_memory(model, layout, fusions=()).total / 1e9
    assert predicted == pytest.approx(seen, rel=0.1)


@pytest.mark.parametrize(
    ("recipe", "layout", "seen"),
    [
        # With the fused loss, and AdamW that keeps halves of weights.
        ("ar4b", Layout(optimizer_bytes=10), 100.16),
        ("ar4b", Layout(optimizer_bytes=6), 84.10),
        ("ar4b", Layout(optimizer_bytes=6, gradient_bytes=2), 76.07),
        ("ar12b", Layout(**TWO, data_parallel=2, optimizer_bytes=10), 108.12),
        ("ar13b_v2w", Layout(**FOUR, **some(16), optimizer_bytes=10), 71.42),
        (
            "ar13b_v2w",
            Layout(**TWO, context_parallel=2, optimizer_bytes=6, gradient_bytes=2),
            76.41,
        ),
        ("ar12b", Layout(context_parallel=4), 127.9),
        ("ar4b", Layout(context_parallel=2, optimizer_bytes=6, gradient_bytes=2), 47.15),
        # The same, planned for 80 GB.
        ("ar4b", Layout(**some(12), optimizer_bytes=10), 77.15),
        ("ar5b_v2w", Layout(**some(9), optimizer_bytes=6), 77.63),
        ("ar5b_v2w", Layout(**some(6), optimizer_bytes=6, gradient_bytes=2), 75.85),
        ("ar12b", Layout(**TWO, **some(36), optimizer_bytes=6), 77.98),
        # The same on one H100 of 80 GB, but for the first row, with AdamW before that.
        ("ar4b", Layout(), 108.17),
        ("ar4b", Layout(recompute="full"), 77.49),
        ("ar4b", Layout(**some(12), gradient_bytes=2), 81.40),
        ("ar4b_lora", Layout(), 44.43),
        ("ar5b_v2w_lora", Layout(), 54.60),
        ("ar12b_lora", Layout(recompute="full"), 33.55),
        ("ar12b_lora", Layout(**some(18)), 77.53),
        ("ar13b_v2w_lora", Layout(recompute="full"), 38.29),
        ("ar13b_v2w_lora", Layout(**some(25)), 76.70),
    ],
)
def test_adapters_some_layers_and_a_fused_loss_as_measured(recipe, layout, seen):
    found = load_recipe(recipe)
    model = found.model_for_clips()
    predicted = training_memory(model, layout, trained_of(found.train, model), fusions=["loss"])
    assert predicted.total / 1e9 == pytest.approx(seen, rel=0.02)


@pytest.mark.parametrize(
    ("recipe", "layout", "seen"),
    [
        ("ar4b", Layout(optimizer_bytes=10), 98.45),
        (
            "ar13b_v2w",
            Layout(**TWO, context_parallel=2, optimizer_bytes=6, gradient_bytes=2),
            75.32,
        ),
    ],
)
def test_with_all_fused_kernels_as_measured(recipe, layout, seen):
    predicted = training_memory(load_recipe(recipe).model_for_clips(), layout)
    assert predicted.total / 1e9 == pytest.approx(seen, rel=0.02)


def test_what_each_setting_changes():
    model = load_recipe("ar4b").model_for_clips()

    def parts(**layout):
        return training_memory(model, Layout(**layout))

    one = parts()
    assert one.weights == 2 * model.num_parameters
    assert one.gradients == 4 * model.num_parameters
    assert one.optimizer == 12 * model.num_parameters
    assert one.total == sum(asdict(one).values())
    spread = parts(data_parallel=4)
    assert spread.optimizer == one.optimizer // 4
    assert (spread.weights, spread.activations) == (one.weights, one.activations)
    split = parts(tensor_parallel=4)
    assert split.weights == pytest.approx(one.weights / 4, rel=0.001)
    assert one.activations / 4 < split.activations < one.activations
    shared = parts(tensor_parallel=4, sequence_parallel=True)
    assert shared.activations == pytest.approx(one.activations / 4, rel=0.01)
    parted = parts(context_parallel=4)
    assert (parted.weights, parted.gradients) == (one.weights, one.gradients)
    # Exchanged queries, keys and values are kept as well.
    assert one.activations // 4 < parted.activations < one.activations // 3
    assert parted.logits == one.logits // 4
    assert parted.optimizer == spread.optimizer
    assert one.activations > parts(recompute="selective").activations
    assert parts(recompute="selective").activations > parts(recompute="full").activations
    assert parts(data_parallel=4, distributed_optimizer=False).optimizer == one.optimizer
    exact = parts(precision="fp32")
    assert (exact.weights, exact.gradients) == (2 * one.weights, one.gradients)
    assert exact.optimizer == 8 * model.num_parameters
    assert exact.activations == 2 * one.activations
    twice = parts(micro_batch_size=2)
    assert (twice.activations, twice.logits) == (2 * one.activations, 2 * one.logits)


def test_flops_of_the_4b_model_counted_by_hand():
    """Six for each weight of a linear layer and id; attention to half of the sequence."""
    model = load_recipe("ar4b").model_for_clips()
    s, h, ffn, q, kv = 12800, 4096, 14336, 4096, 1024
    linear = 16 * (h * (q + 2 * kv) + q * h + 3 * h * ffn) + h * 64000
    norms = 16 * (2 * h + 2 * 128) + h
    attention = 16 * 2 * 2 * s * q / 2
    assert model.training_flops() == pytest.approx(3 * s * (2 * (linear + norms) + attention))


def test_flops_of_text_are_of_its_own_positions():
    plain, text = (load_recipe(r).model_for_clips() for r in ("ar4b", "ar5b_v2w"))
    s, h, q, kv, width, rows = 12864, 4096, 4096, 1024, 1024, 512
    norms = 16 * (h + 2 * 128)
    cross = 16 * (s * (2 * (2 * h * q) + 4 * rows * q) + rows * 2 * width * 2 * kv) + s * 2 * norms
    same = replace(plain, latent_shape=(1, 1, s)).training_flops()
    assert text.training_flops(rows) == pytest.approx(same + 3 * cross)


def test_only_what_is_trained_has_gradients_and_an_optimizer():
    def parts(*overrides, recipe="ar4b", **layout):
        found = load_recipe(recipe, overrides)
        model = found.model_for_clips()
        return training_memory(model, Layout(**layout), trained_of(found.train, model))

    model, plain = load_recipe("ar4b").model_for_clips(), parts()
    lora = parts(recipe="ar4b_lora")
    # Rank 32 of qkv (4096 to 6144), output, gate with up, and down, in 16 layers.
    adapters = 16 * 32 * (4096 + 6144 + 2 * 4096 + 4096 + 2 * 14336 + 14336 + 4096)
    assert lora.weights == 2 * (model.num_parameters + adapters)
    assert (lora.gradients, lora.optimizer) == (4 * adapters, 12 * adapters)
    assert (lora.activations, lora.logits) == (plain.activations, plain.logits)
    half = parts("train.lora.rank=16", recipe="ar4b_lora", tensor_parallel=2)
    assert half.gradients == adapters
    one = parts("train.lora.targets=[linear_fc2]", recipe="ar4b_lora")
    assert one.gradients == 4 * 16 * 32 * (4096 + 14336)
    frozen = parts("train.freeze=[embedding,layers.0-7]")
    left = (
        model.num_parameters
        - 64000 * 4096
        - 8 * (4096 * (4096 + 2048 + 4096 + 3 * 14336) + 2 * 4096 + 2 * 128)
    )
    assert (frozen.weights, frozen.gradients) == (plain.weights, 4 * left)
    assert frozen.optimizer == 12 * left
