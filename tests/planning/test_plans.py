import re
from pathlib import Path

import pytest

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.hub.needs import check_sources
from cosmos_hpc.planning.plans import make_plan


def plan(videos=None, recipe=(), cluster=("parallel=2", "gpus=0")):
    return make_plan(load_recipe("ar_tiny", recipe), load_cluster("local", cluster), videos)


@pytest.mark.parametrize(
    ("videos", "shards"), [(None, None), (1, 1), (2, 2), (8, 2), (100, 2), (101, 3), (1000, 20)]
)
def test_shards_of_at_most_so_many_videos_but_enough_to_keep_all_tasks_busy(videos, shards):
    assert plan(videos).shards == shards
    assert (" 1 video in 1 shard, " in plan(videos).render()) == (videos == 1)


def test_the_disk_holds_shards_and_joined_files_or_only_the_shards():
    one, joined = plan(10, ["data.join=false"]), plan(10)
    ids = plan().sequence_length * 2 * 10
    assert joined.disk_bytes - one.disk_bytes == ids
    assert "disk        up to 0." in joined.render()
    assert "GB for tokens and checkpoints, and more" in plan(10, ["data.clips=all"]).render()


def test_layout():
    p = plan(recipe=["train.gpus=4", "train.tensor_parallel=2", "train.micro_batch_size=2"])
    layout = p.layout
    assert (p.ranks, layout.tensor_parallel, layout.data_parallel, p.micro_batches) == (4, 2, 2, 2)
    expected = "tensor parallel 2, data parallel 2, no recomputation, 2 micro batches per step"
    assert expected in p.render()


def test_memory_and_gpus_are_explained():
    cluster = load_cluster("local", ["gpu=A100-80"])
    text = make_plan(load_recipe("ar5b_v2w", ["train.gpus=4"]), cluster).render()
    assert "parameter model on 4 A100-80 GPUs" in text
    assert re.search(
        r"memory +\d+\.\d GB on each GPU: weights 9\.2, gradients 18\.3, optimizer 11\.5, "
        r"activations \d+\.\d, logits \d\.\d",
        text,
    )
    assert re.search(r"GPUs +at least 2 \(tensor parallel 2, data parallel 1", text)
    assert re.search(r"recommended 2 \(tensor parallel 2, data parallel 1", text)
    many = make_plan(load_recipe("ar5b_v2w"), load_cluster("local", ["gpu=96"])).as_dict()
    assert many["gpu"] == 96.0
    assert many["layout"]["recompute"] == "none"


def test_time_is_explained_and_a_limit_proposed(tmp_path):
    profile = tmp_path / "slurm.yaml"
    profile.write_text(
        "{kind: slurm, gpu_partition: g, cpu_partition: c, parallel: 4, gpu: H200-141, nodes: 2}"
    )
    long = load_recipe("ar12b", ["train.max_steps=50000"])
    found = make_plan(long, load_cluster(str(profile)))
    text, step = found.render(), found.step_time.total
    # Validations are a third of a step each, of which there are 500.
    assert found.train_seconds == pytest.approx(step * (50_000 + 500 / 3))
    tokens = f"{8 * 12_800 / step:,.0f} tokens/s: matrix products"
    assert f"about {step:.2f} s per step, {tokens}" in text
    hours, minutes = divmod(round(found.train_seconds / 60), 60)
    assert f"50000 steps take about {hours} h {minutes} min" in text
    assert re.search(r"8 GPUs: \d\.\d\d s per step, 1\.\d times as fast \(tensor parallel", text)
    limit = re.search(r"cluster.time.train=(\d)-(\d\d):(00|30):00 would do.* it is 04:00:00", text)
    proposed = (int(limit[1]) * 24 + int(limit[2]) + int(limit[3]) / 60) * 3600
    assert 1.25 * found.train_seconds < proposed < 1.25 * found.train_seconds + 3600
    local = make_plan(long, load_cluster("local", ["gpu=H200-141"])).render()
    assert "s per step" in local and "cluster.time" not in local
    assert "time  " not in plan().render()  # nobody expects it of a CPU


@pytest.mark.parametrize(
    ("recipe", "gpu", "why"),
    [
        ("ar4b", "96GB", "the speed of a GPU named by its memory is not known, that of A100-40,"),
        ("ar_tiny", "H100-80", "training in fp32 was not measured, only that in bf16"),
    ],
)
def test_why_no_time_is_known(recipe, gpu, why):
    found = make_plan(load_recipe(recipe), load_cluster("local", [f"gpu={gpu}"]))
    assert found.step_time is None
    assert f"\n  time        not known, as {why}" in found.render()


def test_a_machine_without_the_gpus_is_not_submitted_to(tmp_path):
    from cosmos_hpc.api import submit

    with pytest.raises(RequestError, match="cluster local says 8 GPUs, and this machine has 0"):
        submit(
            "ar_tiny",
            overrides=[f"data.input={tmp_path}", "cluster.gpu=H100-80", "train.init_from=null"],
        )


def test_a_gpu_recipe_is_refused_without_gpus_or_with_too_few():
    local = load_cluster("local", ["gpus=0"])
    with pytest.raises(RequestError, match=r"ar12b works in bf16 on GPUs.*has none"):
        make_plan(load_recipe("ar12b"), local)
    with pytest.raises(RequestError, match="train.gpus=8, but cluster local has 4"):
        make_plan(load_recipe("ar12b", ["train.gpus=8"]), load_cluster("local", ["gpus=4"]))
    assert make_plan(load_recipe("ar12b"), load_cluster("local", ["gpus=8"])).ranks == 8


def test_sources_that_are_not_there_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(RequestError, match="init_from=no is neither a file or folder on this mach"):
        check_sources(load_recipe("ar4b", ["train.init_from=no"]))
    with pytest.raises(RequestError, match="neither a folder, nor a Hub repository"):
        check_sources(load_recipe("ar_tiny", ["data.tokenizer=smal"]))
    with pytest.raises(RequestError, match="data.text_encoder=t6 is neither a folder, nor a Hub"):
        check_sources(load_recipe("ar_tiny_v2w", ["data.text_encoder=t6"]))
    (tmp_path / "weights.pt").touch()
    for start in (tmp_path, tmp_path / "weights.pt", "null", "nvidia/Cosmos-1.0-Autoregressive-4B"):
        check_sources(load_recipe("ar4b", [f"train.init_from={start}"]))


def test_the_disk_must_hold_the_run(small_disk):
    from cosmos_hpc.runs.requirements import check_disk

    with pytest.raises(RequestError, match=r"needs up to 0.6 GB in .*, which has"):
        check_disk(plan(8).disk_bytes, small_disk / "runs" / "x")
    assert not (small_disk / "runs").exists()
    check_disk(plan(8).disk_bytes, Path.cwd())


def test_checkpoints_that_a_run_writes_are_counted():
    def disk(*overrides, recipe="ar4b"):
        cluster = load_cluster("local", ["gpus=8"])
        return make_plan(load_recipe(recipe, overrides), cluster).disk_bytes

    one = 14 * load_recipe("ar4b").model.num_parameters
    # Two that are kept, the last and the next; but a run of few steps has fewer.
    assert disk() == 4 * one
    assert disk("train.max_steps=4") == one
    assert disk("train.max_steps=101") == 2 * one
    assert disk("train.keep_checkpoints=1") == 3 * one
    assert disk("train.freeze=[embedding]") == 4 * (one - 12 * 64000 * 4096)
    assert disk(recipe="ar4b_lora") < 0.01 * 4 * one
    cluster = load_cluster("local", ["gpus=8"])
    assert "4,014 M parameter model (36 M trained) on" in (
        make_plan(load_recipe("ar4b_lora"), cluster).render()
    )


def test_the_disk_is_not_checked_where_that_is_not_wanted(small_disk, tmp_path):
    from cosmos_hpc.api import submit

    (tmp_path / "a.mp4").write_bytes(b"x")
    wanted = [f"data.input={tmp_path}/*.mp4", f"cluster.runs={small_disk}/runs"]
    with pytest.raises(RequestError, match=r"needs up to .* with cluster.check_disk=false"):
        submit("ar_tiny", overrides=wanted, dry_run=True)
    submit("ar_tiny", overrides=[*wanted, "cluster.check_disk=false"], dry_run=True)


def test_libraries_that_a_stage_lacks_are_named(monkeypatch):
    import importlib.util

    from cosmos_hpc.runs.requirements import check_installed

    check_installed(["download", "preprocess", "finalize", "train"])
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "nemo" else found(n))
    check_installed(["download", "preprocess", "finalize"])
    with pytest.raises(RequestError, match=r"train needs nemo.*constraints.txt '.\[train\]'"):
        check_installed(["train"])


def test_embeddings_and_frames_count_in_what_the_disk_must_hold():
    def disk(name, videos):
        cluster = load_cluster("local", ["gpus=8"])
        return make_plan(load_recipe(name), cluster, videos).disk_bytes

    # Of each video an embedding of a megabyte, ids of 32 bits, and twice of 16.
    text = disk("ar5b_v2w", 1000) - disk("ar5b_v2w", None)
    assert text == 1000 * (512 * 1024 * 2 + 12_864 * 8)
    assert disk("ar5b_v2w_action", 1000) - disk("ar5b_v2w_action", None) > 1000 * 49 * 1200 * 8


@pytest.mark.parametrize("overrides", [["train.gpus=2"], ["train.gpus=3"]])
def test_batches_must_divide_among_the_ranks_that_the_plan_chose(overrides):
    """On CPUs too, where the recipe alone leaves open how many copies of the model there are."""
    copies = overrides[0][-1]
    with pytest.raises(RequestError, match=f"micro_batch_size=8 times {copies} data-parallel"):
        plan(8, overrides)
    assert (
        "1 micro batch per step" in plan(8, ["train.gpus=2", "train.micro_batch_size=4"]).render()
    )
