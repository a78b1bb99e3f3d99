"""Which layout a recipe gets on which GPUs."""

import pytest
from msgspec.structs import replace

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.planning.layouts import size
from cosmos_hpc.planning.memory import training_memory

BOTH_IN_BF16 = ["train.gradient_precision=bf16", "train.moment_precision=bf16"]


def sizing(recipe, gpu="H100-80", gpus=8, overrides=()):
    cluster = load_cluster("local", [f"gpu={gpu}", f"gpus={gpus}", "parallel=1"])
    return size(load_recipe(recipe, overrides), cluster)


@pytest.mark.parametrize("gpu", ["A100-80", "H100-80", "80", "80GB"])
@pytest.mark.parametrize(
    ("recipe", "minimum", "recommended"),
    [("ar4b", 2, 2), ("ar12b", 4, 8), ("ar5b_v2w", 2, 4), ("ar13b_v2w", 4, 8)],
)
def test_the_guide_s_table_for_80_gb(recipe, minimum, recommended, gpu):
    found = sizing(recipe, gpu, overrides=["train.fusions=[]"])
    assert (found.minimum.gpus, found.recommended.gpus) == (minimum, recommended)
    assert found.recommended.recompute == "none"
    model = load_recipe(recipe).model_for_clips()
    assert training_memory(model, found.recommended, fusions=()).total <= 0.75 * 85e9
    # Nobody else waits for the GPUs of a machine.
    assert found.layout.gpus == 8
    assert found.memory.total <= 0.92 * 85e9


def test_a_fused_loss_needs_fewer_gpus():
    assert sizing("ar5b_v2w").recommended.gpus == 2
    fused, without = (
        sizing("ar4b", "H200-141", 1, [f"train.fusions=[{name}]"]) for name in ("loss", "norms")
    )
    logits = 12_800 * 64_000
    assert without.memory.total - fused.memory.total == 6 * logits  # 10 bytes to 4


@pytest.mark.parametrize(
    ("recipe", "gpu", "gpus", "expected"),
    [
        ("ar4b", "H200-141", 1, (1, 1, 1, "none", None)),
        ("ar4b", "H100-80", 1, (1, 1, 1, "full", 12)),
        ("ar5b_v2w", "H200-141", 1, (1, 1, 1, "none", None)),
        ("ar12b", "H200-141", 2, (2, 1, 1, "none", None)),
        ("ar13b_v2w", "H200-141", 2, (2, 1, 1, "full", 19)),
        ("ar12b", "H200-141", 4, (2, 1, 2, "none", None)),
        ("ar13b_v2w", "H200-141", 4, (2, 1, 2, "none", None)),
        ("ar12b", "H100-80", 8, (2, 2, 2, "none", None)),
        ("ar13b_v2w", "H100-80", 4, (4, 1, 1, "full", 4)),
        ("ar13b_v2w", "H100-80", 8, (2, 4, 1, "none", None)),
        ("ar13b_v2w", "A100-40", 8, (8, 1, 1, "full", 5)),
        ("ar5b_v2w", "B200-192", 8, (1, 1, 8, "none", None)),
    ],
)
def test_layouts_where_gpus_are_few_or_other(recipe, gpu, gpus, expected):
    layout = sizing(recipe, gpu, gpus).layout
    spread = layout.tensor_parallel, layout.context_parallel, layout.data_parallel
    assert (*spread, layout.recompute, layout.recompute_layers) == expected
    assert layout.sequence_parallel == (layout.tensor_parallel > 1)


def test_what_the_recipe_sets_stays():
    layout = sizing("ar4b", overrides=["train.gpus=4"]).layout
    assert layout.gpus == 4
    layout = sizing("ar4b", overrides=["train.gpus=8", "train.tensor_parallel=4"]).layout
    assert (layout.tensor_parallel, layout.data_parallel) == (4, 2)
    layout = sizing("ar4b", overrides=["train.recompute=full"]).layout
    assert (layout.recompute, layout.recompute_layers) == ("full", None)
    layout = sizing("ar4b", overrides=["train.recompute_layers=3"]).layout
    assert (layout.recompute, layout.recompute_layers) == ("full", 3)
    with pytest.raises(RequestError, match="recompute_layers=17, but the model has 16 layers"):
        sizing("ar4b", overrides=["train.recompute_layers=17"])
    with pytest.raises(RequestError, match="recompute_layers=3 goes with recompute=full"):
        sizing("ar4b", overrides=["train.recompute_layers=3", "train.recompute=selective"])
    layout = sizing("ar4b", overrides=["train.sequence_parallel=false"]).layout
    assert not layout.sequence_parallel


def test_a_batch_that_cannot_be_shared_out_uses_fewer_copies():
    layout = sizing("ar4b", overrides=["train.gpus=8", "train.global_batch_size=2"]).layout
    assert (layout.tensor_parallel, layout.data_parallel) == (4, 2)
    asked = ["train.gpus=8", "train.tensor_parallel=1", "train.context_parallel=1"]
    with pytest.raises(RequestError, match="global_batch_size=4 is not a multiple of"):
        sizing("ar4b", overrides=[*asked, "train.global_batch_size=4"])
    assert sizing("ar4b", overrides=[*asked, "train.global_batch_size=8"]).layout.data_parallel == 8
    layout = sizing("ar4b", overrides=[*asked[:2], "train.global_batch_size=4"]).layout
    assert (layout.context_parallel, layout.data_parallel) == (2, 4)
    with pytest.raises(RequestError, match="cannot be spread over train.gpus=16"):
        sizing("ar4b", gpus=16, overrides=["train.gpus=16", "train.global_batch_size=1"])


def test_too_little_memory_says_how_many_would_do():
    with pytest.raises(
        RequestError,
        match=r"ar13b_v2w needs \d+ GB a GPU with 2 of them .*, and they have 85 GB, of which 92% "
        r"can be used; the fewest such GPUs that would do are 4 \(tensor parallel 4",
    ):
        sizing("ar13b_v2w", gpus=2)
    with pytest.raises(RequestError, match="no number of such GPUs would do"):
        sizing("ar13b_v2w", gpu="8GB")


def test_a_cpu_takes_what_the_recipe_says():
    cluster = load_cluster("local", ["gpus=0"])
    found = size(load_recipe("ar_tiny", ["train.gpus=2", "train.tensor_parallel=2"]), cluster)
    assert (found.layout.tensor_parallel, found.memory) == (2, None)
    assert size(load_recipe("ar_tiny"), cluster).layout.gpus == 1
    some = size(load_recipe("ar_tiny", ["train.recompute_layers=2"]), cluster).layout
    assert (some.recompute, some.recompute_layers) == ("full", 2)
    assert str(some).endswith("full recomputation of 2 layers")


def test_tensor_parallel_alone_means_as_many_ranks():
    cluster = load_cluster("local", ["gpus=0"])
    asked = load_recipe("ar_tiny", ["train.tensor_parallel=2", "train.gpus=null"])
    assert size(asked, cluster).layout.gpus == 2


def test_ranks_share_a_sequence_where_that_is_faster_than_other_layouts():
    chosen = sizing("ar13b_v2w")
    without = sizing("ar13b_v2w", overrides=["train.context_parallel=1"])
    assert (without.layout.tensor_parallel, without.layout.context_parallel) == (4, 1)
    assert chosen.time.total < without.time.total
    assert "tensor parallel 2, context parallel 4, data parallel 1, sequence" in str(chosen.layout)
    # What the recipe sets stays, and what its layers cannot is not chosen.
    asked = sizing("ar4b", overrides=["train.context_parallel=4"]).layout
    assert (asked.context_parallel, asked.gpus) == (4, 8)
    engine = sizing("ar13b_v2w", overrides=["train.transformer_impl=transformer_engine"]).layout
    assert engine.context_parallel == 1
    # A sample of 12 865 inputs is of 5 equal parts, or of 31.
    odd = sizing("ar13b_v2w", overrides=["model.pad_to_multiple_of=5"]).layout
    assert (odd.context_parallel, odd.sequence_parallel) == (1, False)


def test_context_parallelism_stays_within_a_node_and_on_processors_as_asked(tmp_path):
    with pytest.raises(RequestError, match="tensor_parallel times context_parallel must divide"):
        sizing("ar4b", gpus=2, overrides=["train.context_parallel=4"])
    four = size(load_recipe("ar13b_v2w", ["train.gpus=16"]), slurm(tmp_path, 4)).layout
    assert four.tensor_parallel * four.context_parallel <= 4
    cluster = load_cluster("local", ["gpus=0"])
    asked = load_recipe("ar_tiny", ["train.context_parallel=2", "train.gpus=null"])
    layout = size(asked, cluster).layout
    assert (layout.gpus, layout.context_parallel, layout.data_parallel) == (2, 2, 1)


@pytest.mark.parametrize("gpus", ["gpus=0", "gpu=H100-80"])
def test_sequence_parallel_needs_tensor_parallel(gpus):
    cluster = load_cluster("local", [gpus])
    with pytest.raises(RequestError, match=r"sequence_parallel needs .*tensor_parallel above 1"):
        size(load_recipe("ar_tiny", ["train.sequence_parallel=true"]), cluster)
    with pytest.raises(RequestError, match=r"sequence_parallel needs train.tensor_parallel above"):
        load_recipe("ar4b", ["train.sequence_parallel=true", "train.tensor_parallel=1"])
    with pytest.raises(RequestError, match="does not divide the 12801 inputs|does not divide"):
        load_recipe("ar4b", ["train.sequence_parallel=true", "train.tensor_parallel=3"])


def test_float32_takes_more():
    half = sizing("ar4b", gpu="H200-141", overrides=["train.gpus=8"]).memory
    whole = sizing("ar4b", gpu="H200-141", overrides=["train.gpus=8", "train.precision=fp32"])
    assert whole.layout.precision == "fp32"
    assert whole.memory.activations > half.activations
    assert whole.memory.weights > half.weights


def slurm(tmp_path, gpus_per_node):
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        "{kind: slurm, gpu_partition: g, cpu_partition: c, parallel: 4, gpu: H100-80, "
        f"gpus_per_node: {gpus_per_node}, nodes: 4}}"
    )
    return load_cluster(str(profile))


def test_a_node_of_four_gpus_bounds_tensor_parallelism(tmp_path):
    layout = size(load_recipe("ar13b_v2w"), slurm(tmp_path, 4)).layout
    assert (layout.tensor_parallel, layout.data_parallel) == (4, 2)


@pytest.mark.parametrize(
    ("recipe", "gpu", "recompute"),
    [
        ("ar4b_lora", "A100-40", "full"),
        ("ar4b_lora", "A100-80", "none"),
        ("ar5b_v2w_lora", "A100-80", "none"),
        ("ar12b_lora", "A100-80", "full"),
        ("ar13b_v2w_lora", "A100-80", "full"),
    ],
)
def test_adapters_are_trained_on_one_gpu(recipe, gpu, recompute):
    found = sizing(recipe, gpu, gpus=1)
    assert (found.layout.gpus, found.layout.recompute) == (1, recompute)


def test_tensor_parallelism_divides_the_rank_of_adapters():
    layout = sizing("ar13b_v2w_lora", gpus=4, overrides=["train.lora.rank=6"]).layout
    assert (layout.tensor_parallel, layout.data_parallel) != (4, 1)
    assert 6 % layout.tensor_parallel == 0


def test_a_job_takes_a_part_of_a_node_or_whole_ones(tmp_path):
    found = size(load_recipe("ar13b_v2w", ["train.global_batch_size=24"]), slurm(tmp_path, 6))
    assert found.layout.gpus == 12
    assert [layout.gpus for layout, _ in found.further] == [24, 48]
    batch = ["train.global_batch_size=6"]
    assert sizing("ar4b", "H200-141", 6, batch).layout.data_parallel == 6


def test_a_cluster_of_others_gives_as_many_gpus_as_are_recommended(tmp_path):
    """And on those the fastest layout, which may leave less room than the recommended one."""
    found = size(load_recipe("ar13b_v2w"), slurm(tmp_path, 8))
    assert (found.recommended.gpus, found.recommended.tensor_parallel) == (8, 4)
    assert (found.layout.gpus, found.layout.tensor_parallel) == (8, 2)
    assert [layout.gpus for layout, _ in found.further] == [16, 32, 64]
    asked = size(load_recipe("ar13b_v2w", ["train.recompute=full"]), slurm(tmp_path, 8)).layout
    assert (asked.gpus, asked.recompute) == (4, "full")
    times = [found.time, *(time for _, time in found.further)]
    assert times == sorted(times, key=lambda time: -time.total)


def test_no_layer_less_than_memory_asks_for():
    model = load_recipe("ar13b_v2w").model_for_clips()
    found = sizing("ar13b_v2w", "H200-141", 2)
    fewer = replace(found.layout, recompute_layers=found.layout.recompute_layers - 1)
    assert found.memory.total <= 0.92 * 150.1e9 < training_memory(model, fewer).total
    every = replace(found.layout, recompute_layers=model.num_layers)
    assert training_memory(model, every) == training_memory(
        model, replace(every, recompute_layers=None)
    )


def test_gpus_of_unknown_speed_have_no_times():
    found = sizing("ar4b", "80GB")
    assert (found.time, found.further) == (None, ())
    assert found.layout == sizing("ar4b", "H100-80").layout


def test_moments_in_bf16_take_half_of_the_optimizer_s_state():
    usual, half = sizing("ar4b"), sizing("ar4b", overrides=["train.moment_precision=bf16"])
    assert half.layout.optimizer_bytes == 6
    parameters = half.memory.optimizer * half.layout.copies / 6
    assert parameters == pytest.approx(half.memory.weights / 2, rel=1e-6)
    assert half.time.optimizer < usual.time.optimizer
    # Gradients in bf16 need no float32 ones beside them then.
    four = sizing("ar13b_v2w", gpus=4, overrides=BOTH_IN_BF16)
    assert (four.layout.context_parallel, four.layout.tensor_parallel) == (2, 2)
    assert four.layout.recompute == "none"
    assert sizing("ar13b_v2w", gpus=4).layout.recompute != "none"


@pytest.mark.parametrize(
    ("recipe", "gpus"), [("ar4b", 1), ("ar5b_v2w", 1), ("ar12b", 2), ("ar13b_v2w", 2)]
)
def test_the_fewest_gpus_of_80_gb_with_gradients_and_moments_in_bf16(recipe, gpus):
    assert sizing(recipe, overrides=BOTH_IN_BF16).minimum.gpus == gpus


def test_a_plan_names_what_bf16_would_bring():
    found = sizing("ar13b_v2w", gpus=4)
    settings, layout, time = found.in_bf16
    assert settings == "train.moment_precision=bf16 and train.gradient_precision=bf16"
    assert layout == sizing("ar13b_v2w", gpus=4, overrides=BOTH_IN_BF16).layout
    assert time.total < 0.95 * found.time.total
    assert sizing("ar13b_v2w", gpus=4, overrides=BOTH_IN_BF16).in_bf16 is None
    assert sizing("ar4b").in_bf16 is None  # hardly faster
    assert sizing("ar4b", "80GB").in_bf16 is None
    with pytest.raises(
        RequestError, match="would do are 2 .*, and 1 with train.moment_precision=bf16$"
    ):
        sizing("ar5b_v2w", gpus=1)
    assert sizing("ar5b_v2w", gpus=1, overrides=BOTH_IN_BF16).layout.gpus == 1
    plain = ["train.fusions=[]"]
    # As few settings as do; and what is asked for may be in the way.
    moments = ["train.moment_precision=bf16"]
    assert sizing("ar13b_v2w", gpus=4, overrides=moments).in_bf16[0] == BOTH_IN_BF16[0]
    with pytest.raises(
        RequestError, match="; 4 would do without train.tensor_parallel=1 .*, and 2"
    ):
        sizing("ar13b_v2w", gpus=4, overrides=["train.tensor_parallel=1"])
    with pytest.raises(RequestError, match="would do are 2") as e:
        sizing("ar5b_v2w", gpus=1, overrides=plain)
    assert "moment_precision" not in str(e.value)


def test_gradients_in_bf16_take_half():
    half = sizing("ar4b", overrides=["train.gradient_precision=bf16"])
    assert half.memory.gradients == half.memory.weights
