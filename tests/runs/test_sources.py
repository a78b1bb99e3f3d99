"""What a person may name to generate from, and what is refused before anything is written."""

import json
from pathlib import Path

import pytest

import cosmos_hpc as ch
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.runs.sources import find_source, generation_recipe
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import dump_yaml


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a picture, a video by its name, and a run that has saved two steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("frame.png", "drive.MP4", "notes.md"):
        Path(name).touch()
    run = tmp_path / "runs" / "mine"
    files.write_json(run / "run.json", {"id": "x", "name": "mine"})
    files.write_atomic(run / "recipe.yaml", dump_yaml(load_recipe("ar_tiny", ["train.seed=3"])))
    for step, whole in ((9, True), (19, True), (29, False)):
        folder = run / "train" / "checkpoints" / f"step={step}-reduced_train_loss=1.0000"
        (folder / "weights").mkdir(parents=True)
        if whole:
            (folder / "weights" / "metadata.json").touch()
    return tmp_path


def test_a_run_gives_its_newest_whole_checkpoint(home):
    source = find_source("mine")
    assert source.weights.endswith("step=19-reduced_train_loss=1.0000")
    assert source.recipe.train.seed == 3
    checkpoints = home / "runs/mine/train/checkpoints"
    (checkpoints / "step=19-reduced_train_loss=1.0000-unfinished").touch()
    assert find_source("runs/mine").weights.endswith("step=9-reduced_train_loss=1.0000")
    files.write_json(home / "runs/mine/train/done.json", {"checkpoint": "train/checkpoints/last"})
    assert find_source(str(home / "runs/mine")).weights.endswith("train/checkpoints/last")


def test_a_checkpoint_of_a_run_needs_no_recipe_and_others_do(home):
    own = home / "runs/mine/train/checkpoints/step=9-reduced_train_loss=1.0000"
    assert find_source(str(own)).recipe.train.seed == 3
    (home / "model.pt").touch()
    with pytest.raises(ch.RequestError, match="does not say which model .* add recipe=NAME"):
        find_source("model.pt")
    source = find_source("model.pt", recipe="ar4b")
    assert (source.weights, source.recipe.name) == (str(home / "model.pt"), "ar4b")


def test_published_weights_by_recipe_and_by_repository(home):
    repository = "nvidia/Cosmos-1.0-Autoregressive-5B-Video2World"
    assert find_source("ar5b_v2w").weights == repository
    assert find_source(repository).recipe.name == "ar5b_v2w"
    assert find_source(repository, recipe="ar5b_v2w_action").recipe.name == "ar5b_v2w_action"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ar_tiny", "recipe ar_tiny has no published weights"),
        ("mien", "neither a run, nor a checkpoint, nor a recipe; did you mean mine"),
        ("ar4", "did you mean ar4b"),
        ("gone.yaml", "gone.yaml"),
    ],
)
def test_what_is_no_source(home, source, message):
    with pytest.raises(ch.RequestError, match=message):
        find_source(source)


def test_settings_of_the_section_generate_need_not_name_it(home):
    recipe = generation_recipe(find_source("mine"), ["input=frame.png", "generate.top_p=0.5"])
    assert (recipe.generate.input, recipe.generate.top_p) == ("frame.png", 0.5)
    assert not recipe.trains
    with pytest.raises(ch.RequestError, match="input is missing"):
        generation_recipe(find_source("mine"), ["top_p=0.5"])
    with pytest.raises(ch.RequestError, match=r"setting 'topp'; did you mean generate\.top_p"):
        generation_recipe(find_source("mine"), ["input=frame.png", "topp=0.5"])


#: That of a recipe for GPUs, which are refused first where there are none.
CPU = "train.precision=fp32"
LIST = "\n".join(
    json.dumps({"visual_input": name, **more})
    for name, more in (("frame.png", {"prompt": "a street"}), ("drive.MP4", {}))
)


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        ("mine", ["input=gone.png"], "generate.input=gone.png does not exist"),
        ("mine", ["input=notes.md"], "neither a picture nor a video by its name"),
        ("mine", ["input=frame.png", "prompt=a street"], "models of task=video read no text"),
        ("mine", ["input=list.jsonl"], "has a prompt, and the model reads frames alone"),
        ("ar5b_v2w", [CPU, "input=frame.png"], r"\(entry 1\) has no prompt, which the model reads"),
        ("ar5b_v2w", [CPU, "input=list.jsonl"], r"drive.MP4\" \(line 2\) has no prompt"),
        ("ar5b_v2w", [CPU, "input=list.jsonl", "prompt=x"], "goes with one picture or video"),
        ("ar5b_v2w", ["input=frame.png", "prompt= "], "prompt is blank"),
        ("ar5b_v2w_action", [CPU, "input=frame.png"], "has no actions, which the model reads"),
        ("ar5b_v2w_action", ["input=frame.png", "seconds=3"], "does not go with task=action"),
        ("mine", ["input=frame.png", "condition_frames=4"], "possible: 1, 9"),
        ("mine", ["input=frame.png", "frames=9"], "generate.frames=9 .*9 given frames"),
        ("mine", ["input=frame.png", "frames=20", "seconds=3"], "frames and seconds say the same"),
        ("mine", ["input=frame.png", "guard=rules"], "guard"),
        ("ar4b", ["input=frame.png"], "works in bf16 on GPUs, and cluster local has none"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_are_refused(home, source, words, message):
    Path("list.jsonl").write_text(LIST)
    files.write_atomic(
        Path("runs/mine/cluster.yaml").absolute(),
        "kind: local\nname: local\nruns: runs\nparallel: 2\ngpus: 0\ngpu: 80GB\n",
    )
    with pytest.raises(ch.RequestError, match=message):
        ch.generate(source, words)
    assert [path.name for path in Path("runs").iterdir()] == ["mine"]


def test_the_plan_of_samples(home):
    """Batches that fit the GPU, shared by the tasks that the cluster runs at a time."""
    words = ["generate.clips=40", "generate.samples=2"]
    plan = ch.plan("ar13b_v2w", overrides=["cluster.gpu=H100-80", "cluster.parallel=8", *words])
    does = plan.generation
    assert (does.batch_size, does.tasks, does.given_frames, does.new_tokens) == (8, 8, 9, 7680)
    assert does.memory.weights == pytest.approx(2 * 13.2e9, rel=0.03)
    assert does.memory.cache == pytest.approx(8 * 2.18e9, rel=0.01)
    smaller = ch.plan("ar12b", overrides=["cluster.gpu=A100-40", *words]).generation
    assert 1 <= smaller.batch_size < 8
    assert smaller.memory.total < 0.95 * 40e9
    with pytest.raises(ch.RequestError, match=r"16 samples at the same time.* set a smaller"):
        ch.plan("ar12b", overrides=["cluster.gpu=48GB", *words, "generate.batch_size=16"])
    none = ch.plan("ar13b_v2w", overrides=["cluster.gpu=31GB", "cluster.gpus=64"])
    assert none.generation.tasks == 0
    assert "generate    nothing: one sample takes" in none.render()
