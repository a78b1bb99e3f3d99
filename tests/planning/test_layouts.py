"""Which layout a recipe gets on which GPUs."""

import pytest

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.planning.layouts import size


def sizing(recipe, gpu="H100-80", gpus=8, overrides=()):
    cluster = load_cluster("local", [f"gpu={gpu}", f"gpus={gpus}", "parallel=1"])
    return size(load_recipe(recipe, overrides), cluster)


@pytest.mark.parametrize("gpu", ["A100-80", "H100-80", "80", "80GB"])
@pytest.mark.parametrize(
    ("recipe", "minimum", "recommended"),
    [("ar4b", 2, 2), ("ar12b", 4, 8), ("ar5b_v2w", 2, 4), ("ar13b_v2w", 4, 8)],
)
def test_the_guide_s_table_for_80_gb(recipe, minimum, recommended, gpu):
    found = sizing(recipe, gpu)
    assert (found.minimum.gpus, found.recommended.gpus) == (minimum, recommended)
    assert found.layout == found.recommended
    assert found.layout.recompute == "none"
    assert found.memory.total <= 0.8 * 80e9


@pytest.mark.parametrize(
    ("recipe", "gpu", "gpus", "expected"),
    [
        ("ar4b", "H200-141", 1, (1, 1, "none")),
        ("ar5b_v2w", "H200-141", 1, (1, 1, "none")),
        ("ar12b", "H200-141", 2, (2, 1, "selective")),
        ("ar13b_v2w", "H200-141", 2, (2, 1, "full")),
        ("ar12b", "H200-141", 4, (4, 1, "none")),
        ("ar13b_v2w", "H200-141", 4, (4, 1, "none")),
        ("ar12b", "H100-80", 8, (4, 2, "none")),
        ("ar13b_v2w", "H100-80", 8, (8, 1, "none")),
        ("ar13b_v2w", "A100-40", 8, (8, 1, "full")),
        ("ar5b_v2w", "B200-192", 8, (1, 1, "none")),
    ],
)
def test_layouts_where_gpus_are_few_or_other(recipe, gpu, gpus, expected):
    layout = sizing(recipe, gpu, gpus).layout
    assert (layout.tensor_parallel, layout.data_parallel, layout.recompute) == expected
    assert layout.sequence_parallel == (layout.tensor_parallel > 1)


def test_what_the_recipe_sets_stays():
    layout = sizing("ar4b", overrides=["train.gpus=8"]).layout
    assert (layout.tensor_parallel, layout.data_parallel) == (2, 4)
    layout = sizing("ar4b", overrides=["train.gpus=8", "train.tensor_parallel=4"]).layout
    assert (layout.tensor_parallel, layout.data_parallel) == (4, 2)
    layout = sizing("ar4b", overrides=["train.recompute=full"]).layout
    assert layout.recompute == "full"
    layout = sizing("ar4b", overrides=["train.sequence_parallel=false"]).layout
    assert not layout.sequence_parallel


def test_a_batch_that_cannot_be_shared_out_uses_fewer_copies():
    layout = sizing("ar4b", overrides=["train.gpus=8", "train.global_batch_size=2"]).layout
    assert (layout.tensor_parallel, layout.data_parallel) == (4, 2)
    asked = ["train.gpus=8", "train.tensor_parallel=1", "train.global_batch_size=8"]
    with pytest.raises(RequestError, match="global_batch_size=4 is not a multiple of"):
        sizing("ar4b", overrides=[*asked[:2], "train.global_batch_size=4"])
    assert sizing("ar4b", overrides=asked).layout.data_parallel == 8
    with pytest.raises(RequestError, match="cannot be spread over train.gpus=16"):
        sizing("ar4b", gpus=16, overrides=["train.gpus=16", "train.global_batch_size=1"])


def test_too_little_memory_says_how_many_would_do():
    with pytest.raises(
        RequestError,
        match=r"ar13b_v2w needs \d+ GB a GPU with 2 of them .*, and they have 80 GB, of which 95% "
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


def test_tensor_parallel_alone_means_as_many_ranks():
    cluster = load_cluster("local", ["gpus=0"])
    asked = load_recipe("ar_tiny", ["train.tensor_parallel=2", "train.gpus=null"])
    assert size(asked, cluster).layout.gpus == 2


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


def test_a_node_of_four_gpus_bounds_tensor_parallelism(tmp_path):
    profile = tmp_path / "four.yaml"
    profile.write_text(
        "{kind: slurm, gpu_partition: g, cpu_partition: c, parallel: 4, gpu: H100-80, "
        "gpus_per_node: 4, nodes: 4}"
    )
    layout = size(load_recipe("ar13b_v2w"), load_cluster(str(profile))).layout
    assert (layout.tensor_parallel, layout.data_parallel) == (4, 4)


@pytest.mark.parametrize(
    ("recipe", "gpu", "recompute"),
    [
        ("ar4b_lora", "A100-40", "selective"),
        ("ar4b_lora", "A100-80", "none"),
        ("ar5b_v2w_lora", "A100-80", "none"),
        ("ar12b_lora", "A100-80", "selective"),
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
