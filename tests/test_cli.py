"""The command line as a person meets it: what it prints, and its exit codes."""

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import cosmos_hpc


def test_help_and_version(tmp_path):
    shown = cosmos_hpc("--help", cwd=tmp_path)
    assert shown.code == 0
    assert "cosmos-hpc submit recipe=ar_tiny data.input=videos" in shown.out
    assert cosmos_hpc("--version", cwd=tmp_path).out.startswith("cosmos-hpc 0.")


def test_recipes(tmp_path):
    listed = cosmos_hpc("recipes", cwd=tmp_path)
    assert listed.code == 0
    assert re.search(r"ar13b_v2w +Cosmos-1.0 13B Video2World", listed.out)
    printed = cosmos_hpc("recipes", "ar13b_v2w", "train.max_steps=300", cwd=tmp_path)
    assert "  max_steps: 300\n" in printed.out
    as_json = cosmos_hpc("recipes", "ar4b", "--json", cwd=tmp_path)
    assert json.loads(as_json.out)["model"]["num_layers"] == 16


def test_plan(tmp_path, scenes):
    shown = cosmos_hpc("plan", "recipe=ar_tiny", f"data.input={scenes}", cwd=tmp_path)
    assert shown.code == 0
    assert "8 videos in " in shown.out
    as_json = cosmos_hpc("plan", "recipe=ar_tiny", "--json", cwd=tmp_path)
    assert json.loads(as_json.out)["sequence_length"] == 180
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["submit"], "recipe= is missing; there are ar12b, ar12b_lora, ar13b_v2w"),
        (["submit", "recpie=ar_tiny"], "did you mean recipe?"),
        (["submit", "recipe=ar_tiny"], "data.input is not set"),
        (["submit", "recipe=ar_tiny", "--stages", ""], "unknown stage ''"),
        (
            ["sample-videos", "x", "height=63"],
            "of at least 16, that's a multiple of 2",
        ),
        (["sample-videos", "/sys/x"], "permission denied; choose a place"),
        (
            ["submit", "recipe=ar_tiny", "data.input=nowhere"],
            "/nowhere does not exist; give the folder",
        ),
        (["submit", "recipe=ar_tiny", "data.imput=x"], "did you mean data.input?"),
        (["submit", "recipe=ar_tiny", "cluster.paralel=3"], "did you mean parallel?"),
        (["submit", "recipe=ar_tiny", "partition=a"], "cluster.gpu_partition, of profiles of kind"),
        (["submit", "recipe=ar_tiny", "cluster.nodes=2"], "it is a setting of profiles of kind"),
        (["generate", "ar4b", "num_samples=2"], "did you mean generate.samples?"),
        (["settings", "lr"], "no setting begins with 'lr'; did you mean train.learning_rate?"),
        (["submit", "recipe=ar_tiny", "cluster=lokal"], "did you mean local?"),
        (["submit", "recipe=ar_tiny", "data.input=.", "--name", "a/b"], "run name 'a/b' may hold"),
        (["submit", "recipe=ar_tiny", "--stages", "trian"], "did you mean train?"),
        (
            ["submit", "recipe=ar_tiny_v2w", "data.input=."],
            "holds no video: none of its 0 files",
        ),
        (
            ["submit", "recipe=ar_tiny_action", "data.input=."],
            "has no actions; task action takes a LeRobot data set, with meta/info.json, or",
        ),
        # Before HF_HOME, which is of no use to a machine that cannot train it.
        (["submit", "recipe=ar4b", "data.input=.", "cluster.gpus=0"], "works in bf16 on GPUs"),
        (
            ["submit", "recipe=ar_tiny", "data.input=.", "data.tokenizer=."],
            "data.tokenizer=. has no encoder.jit and no decoder.jit",
        ),
        (["status", "nothing"], "/runs, where there is none; elsewhere give its path"),
        (["sample-videos", "x", "cuont=3"], "did you mean count?"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_starts_nothing(tmp_path, arguments, says):
    shown = cosmos_hpc(*arguments, cwd=tmp_path)
    assert shown.code == (1 if "/sys/x" in arguments else 2)
    assert says in shown.err
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path, scenes):
    # Not even root may make a folder there.
    shown = cosmos_hpc(
        "submit", "recipe=ar_tiny", f"data.input={scenes}", "cluster.runs=/sys/runs", cwd=tmp_path
    )
    assert shown.code == 2
    assert "permission denied; choose a place that you may write to" in shown.err
    assert len(shown.err.splitlines()) == 1


def test_the_login_side_imports_neither_torch_nor_nemo_nor_megatron(tmp_path, scenes):
    code = """
import sys
from cosmos_hpc.cli import main
assert main(sys.argv[1:]) in (0, 2)
heavy = {"torch", "nemo", "megatron", "nemo_run", "submitit", "av", "numpy", "huggingface_hub"}
heavy |= {"msgspec"} if sys.argv[1:] in (["--help"], ["recipes"]) else set()
heavy &= set(sys.modules)
assert not heavy, heavy
"""
    for arguments in (
        ["--help"],
        ["recipes"],
        ["recipes", "ar4b"],
        ["settings", "cluster"],
        ["plan", "recipe=ar_tiny", f"data.input={scenes}"],
        ["status", "nothing"],
        ["runs"],
        ["completion", "zsh"],
        ["logs", "nothing"],
        ["submit", "recipe=ar_tiny"],
        ["download", "ar_tiny"],
        # Refused before what carries them out is imported.
        ["convert", "nowhere.pt", "x.pt"],
        ["convert", str(scenes), str(scenes)],
        ["convert", str(scenes), "x.pth"],
        ["convert", str(scenes), "x.pt", "recipe=ar4"],
        ["convert", str(scenes), "x.pt", "base=nowhere"],
        ["small-tokenizer", "x", "compression=[8,16]"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_sample_videos_and_small_tokenizer(tmp_path):
    made = cosmos_hpc(
        "sample-videos", "v", "count=2", "frames=3", "height=64", "width=96", cwd=tmp_path
    )
    assert made.code == 0
    assert sorted(p.name for p in (tmp_path / "v").iterdir()) == [
        "scene-0000.mp4",
        "scene-0001.mp4",
    ]
    made = cosmos_hpc("small-tokenizer", "t", "compression=[4,8,8]", cwd=tmp_path)
    assert made.code == 0
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["decoder.jit", "encoder.jit"]


def test_settings_and_flags_stand_in_any_order(tmp_path):
    orders = (
        ["--json", "recipe=ar_tiny", "train.max_steps=7"],
        ["recipe=ar_tiny", "--json", "train.max_steps=7"],
        ["recipe=ar_tiny", "train.max_steps=7", "--json"],
    )
    for order in orders:
        shown = cosmos_hpc("plan", *order, cwd=tmp_path)
        assert json.loads(shown.out)["max_steps"] == 7
    shown = cosmos_hpc("plan", "recipe=ar_tiny", "--jsn", cwd=tmp_path)
    assert shown.code == 2
    assert "unrecognized arguments: --jsn" in shown.err
    shown = cosmos_hpc("plan", "recipe=ar_tiny", "--train.max_steps=7", cwd=tmp_path)
    assert shown.code == 2
    assert "settings are written without dashes: train.max_steps=7" in shown.err


def test_the_nearest_command_is_named(tmp_path):
    shown = cosmos_hpc("staus", "first", cwd=tmp_path)
    assert shown.code == 2
    assert "there is no command 'staus'; did you mean status?" in shown.err
    assert "invalid choice" in cosmos_hpc("zzz", cwd=tmp_path).err


def test_a_folder_of_that_name_is_not_the_small_tokenizer(tmp_path, scenes):
    (tmp_path / "small").mkdir()
    words = ("submit", "recipe=ar_tiny", f"data.input={scenes}", "--name", "x", "--dry-run")
    outcome = cosmos_hpc(*words, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "  tokenizer: small\n" in (tmp_path / "runs" / "x" / "recipe.yaml").read_text()
