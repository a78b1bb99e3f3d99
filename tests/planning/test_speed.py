"""The model of a step's time against every step that was measured."""

import pytest
from msgspec.structs import replace

from cosmos_hpc.config.gpus import GPU_GIGABYTES
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.models.config import FUSIONS
from cosmos_hpc.planning.layouts import trained_of
from cosmos_hpc.planning.memory import Layout
from cosmos_hpc.planning.speed import RATES, step_time

TWO = {"tensor_parallel": 2, "sequence_parallel": True}
FOUR = {"tensor_parallel": 4, "sequence_parallel": True}
#: The fused kernels that were there before.
EARLIER = [name for name in FUSIONS if name != "attention_inputs"]
HALVES, MOMENTS = Layout(optimizer_bytes=10), Layout(optimizer_bytes=6)
SHARED = replace(MOMENTS, **TWO, context_parallel=2, gradient_bytes=2)


def some(layers):
    return {"recompute": "full", "recompute_layers": layers}


def predict(recipe, layout, batch=1, gpu="H200-141", fusions=FUSIONS, node_gpus=8):
    model = load_recipe(recipe).model_for_clips()
    return step_time(model, layout, batch, RATES[gpu], node_gpus, fusions)


@pytest.mark.parametrize(
    ("recipe", "layout", "seconds"),
    [
        # Seconds a step on H200s, one sample, without fused kernels; see benchmarks/README.md.
        ("ar4b", Layout(), 0.737),
        ("ar4b", Layout(recompute="selective"), 0.853),
        ("ar4b", Layout(recompute="full"), 0.938),
        ("ar4b", Layout(**TWO), 0.419),
        ("ar5b_v2w", Layout(), 0.826),
        ("ar5b_v2w", Layout(recompute="selective"), 0.935),
        ("ar12b", Layout(**TWO, recompute="selective"), 1.379),
        ("ar12b", Layout(**TWO, recompute="full"), 1.519),
        ("ar13b_v2w", Layout(**TWO, recompute="full"), 1.752),
        # With Transformer Engine's layers.
        ("ar4b", Layout(), 0.717),
        ("ar5b_v2w", Layout(recompute="selective"), 0.933),
        ("ar13b_v2w", Layout(**TWO, recompute="full"), 1.758),
        # Without NeMo.
        ("ar4b", Layout(), 0.713),
        ("ar4b", Layout(), 0.723),
        ("ar4b", Layout(recompute="selective"), 0.842),
    ],
)
def test_within_a_tenth_of_what_was_measured(recipe, layout, seconds):
    assert predict(recipe, layout, fusions=()).total == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(
    ("recipe", "layout", "batch", "tflops"),
    [
        ("ar4b", Layout(), 1, 475),
        ("ar4b", Layout(**TWO, data_parallel=2), 4, 448),
        ("ar5b_v2w", Layout(**TWO, data_parallel=2), 4, 434),
        ("ar12b", Layout(**FOUR), 4, 416),
        ("ar13b_v2w", Layout(**FOUR, recompute="full"), 4, 294),
    ],
)
def test_within_a_tenth_of_measured_tflops_of_a_gpu(recipe, layout, batch, tflops):
    flops = load_recipe(recipe).model_for_clips().training_flops() * batch
    seconds = predict(recipe, layout, batch, fusions=()).total
    assert flops / seconds / layout.gpus / 1e12 == pytest.approx(tflops, rel=0.1)


@pytest.mark.parametrize(
    ("recipe", "layout", "batch", "gpu", "seconds"),
    [
        # AdamW keeps halves of weights, and the CPU does not hold up the GPU.
        ("ar4b", HALVES, 1, "H200-141", 0.656),
        ("ar4b", HALVES, 1, "H200-141", 0.645),
        ("ar4b", MOMENTS, 1, "H200-141", 0.640),
        ("ar4b", replace(MOMENTS, gradient_bytes=2), 1, "H200-141", 0.633),
        ("ar12b", replace(HALVES, **TWO, data_parallel=2), 4, "H200-141", 2.066),
        ("ar13b_v2w", replace(HALVES, **FOUR, **some(16)), 4, "H200-141", 3.229),
        ("ar13b_v2w", SHARED, 4, "H200-141", 2.670),
        ("ar4b", replace(MOMENTS, context_parallel=2, gradient_bytes=2), 4, "H200-141", 1.382),
        # The same in layouts for 80 GB.
        ("ar4b", replace(HALVES, **some(12)), 1, "H200-141", 0.795),
        ("ar4b", replace(MOMENTS, gradient_bytes=2), 1, "H200-141", 0.643),
        ("ar5b_v2w", replace(MOMENTS, **some(9)), 1, "H200-141", 0.868),
        ("ar5b_v2w", replace(MOMENTS, **some(6), gradient_bytes=2), 1, "H200-141", 0.825),
        ("ar12b", replace(MOMENTS, **TWO, **some(36)), 2, "H200-141", 2.626),
        # Before that.
        ("ar4b", Layout(), 1, "H200-141", 0.676),
        ("ar4b", Layout(), 1, "H200-141", 0.696),
        ("ar4b", Layout(data_parallel=2), 2, "H200-141", 0.700),
        ("ar12b", Layout(**TWO, recompute="full", recompute_layers=11), 2, "H200-141", 2.295),
        # With AdamW in one pass, and the GPU not waiting inside of a step.
        ("ar4b", Layout(), 1, "H200-141", 0.653),
        ("ar4b", Layout(data_parallel=4), 4, "H200-141", 0.688),
        ("ar4b", Layout(data_parallel=4), 4, "H200-141", 0.661),
        ("ar5b_v2w", Layout(data_parallel=4), 4, "H200-141", 0.784),
        ("ar5b_v2w", Layout(data_parallel=4), 4, "H200-141", 0.765),
        ("ar12b", Layout(**TWO, data_parallel=2), 4, "H200-141", 2.112),
        ("ar12b", Layout(**TWO, data_parallel=2), 4, "H200-141", 2.033),
        ("ar12b", Layout(context_parallel=4), 4, "H200-141", 2.228),
        ("ar13b_v2w", Layout(**FOUR, **some(16)), 4, "H200-141", 3.309),
        ("ar4b", Layout(recompute="full"), 1, "H100-80", 0.906),
        ("ar4b_lora", Layout(), 1, "H100-80", 0.566),
        ("ar5b_v2w_lora", Layout(), 1, "H100-80", 0.664),
        ("ar12b_lora", Layout(**some(40)), 1, "H100-80", 2.196),
        ("ar12b_lora", Layout(**some(18)), 1, "H100-80", 1.842),
        ("ar13b_v2w_lora", Layout(**some(40)), 1, "H100-80", 2.561),
        ("ar13b_v2w_lora", Layout(**some(25)), 1, "H100-80", 2.269),
    ],
)
def test_within_a_tenth_of_what_was_measured_with_fused_kernels(
    recipe, layout, batch, gpu, seconds
):
    found = load_recipe(recipe)
    model = found.model_for_clips()
    trained = trained_of(found.train, model)
    predicted = step_time(model, layout, batch, RATES[gpu], fusions=EARLIER, trained=trained)
    assert predicted.total == pytest.approx(seconds, rel=0.1)


def test_within_a_tenth_of_what_was_measured_with_all_of_them():
    assert predict("ar13b_v2w", SHARED, 4).total == pytest.approx(2.606, rel=0.1)


def test_the_parts_of_a_profiled_step():
    """Of 710 ms of kernels: products 394, attention 155, Adam with norms and zeroing 50."""
    parts = predict("ar4b", Layout(), fusions=())
    assert parts.matrix_products == pytest.approx(0.394, rel=0.1)
    assert parts.attention == pytest.approx(0.155, rel=0.1)
    assert parts.optimizer == pytest.approx(0.050, rel=0.1)
    assert parts.communication == 0
    # A quarter of a step of the 12B model on four is waiting for tensor parallelism.
    wide = predict("ar12b", Layout(**FOUR), 4, fusions=())
    assert wide.communication / wide.total == pytest.approx(0.26, abs=0.06)


def test_every_known_gpu_has_a_speed_and_newer_ones_are_faster():
    assert set(RATES) == set(GPU_GIGABYTES)
    times = [predict("ar4b", Layout(), gpu=gpu).total for gpu in GPU_GIGABYTES]
    assert times == sorted(times, reverse=True)


def test_what_each_setting_changes():
    one = predict("ar4b", Layout(), 4)
    assert predict("ar4b", Layout(), 8).matrix_products == 2 * one.matrix_products
    assert predict("ar4b", Layout(), 8).optimizer == one.optimizer
    shared = predict("ar4b", Layout(data_parallel=4), 4)
    assert shared.matrix_products == one.matrix_products / 4
    assert one.optimizer / 4 < shared.optimizer < one.optimizer
    assert shared.communication > 0
    far = predict("ar4b", Layout(data_parallel=4), 4, node_gpus=2)
    assert far.communication > shared.communication
    parted = predict("ar4b", Layout(context_parallel=4), 4)
    # Shorter products are less efficient.
    assert 0.9 < one.matrix_products / parted.matrix_products / 4 < 1
    assert parted.attention == one.attention / 4
    assert parted.optimizer == shared.optimizer
    # Per sample and layer queries, keys, values and output, of which three quarters come from other
    # ranks, forward and backward.
    exchanged = 16 * 2 * 2 * 12800 / 4 * 2 * (4096 + 1024) * 3 / 4
    waited = parted.communication - shared.communication
    assert waited == pytest.approx(4 * exchanged / RATES["H200-141"].tensor)
    repeated = predict("ar4b", Layout(context_parallel=4, recompute="full"), 4).communication
    assert repeated - shared.communication == pytest.approx(1.5 * waited)
    some = Layout(recompute="full", recompute_layers=4)
    again = predict("ar4b", Layout(recompute="full"), 4)
    share = (predict("ar4b", some, 4).total - one.total) / (again.total - one.total)
    assert share == pytest.approx(4 / 16)
    every = Layout(recompute="full", recompute_layers=16)
    assert predict("ar4b", every, 4) == again
    slow = predict("ar4b", Layout(), 4, gpu="A100-80")
    assert slow.matrix_products > 3 * one.matrix_products
    assert predict("ar4b", Layout(precision="fp32"), 4).total > 5 * one.total
