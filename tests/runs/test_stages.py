"""The table of stages: what it says, and what becomes of a row that is added."""

import json
import re

import pytest

import cosmos_hpc as ch
from cosmos_hpc.backends.kinds import KINDS
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.config.tasks import TASKS
from cosmos_hpc.runs.logs import note_log
from cosmos_hpc.runs.stages import STAGES, list_stages, stage_and_following, stage_named
from cosmos_hpc.utils import files
from cosmos_hpc.utils.imports import load
from cosmos_hpc.utils.settings import setting
from tests.conftest import cosmos_hpc
from tests.new_stage import package_with_a_stage
from tests.runs.written import worked_on, write_run


def test_a_stage_stands_behind_those_that_it_needs():
    seen = set()
    for stage in STAGES.values():
        assert seen.issuperset(stage.after)
        assert bool(re.search("%0?[0-9]*d", stage.marker)) == stage.array
        seen.add(stage.name)


def test_what_the_tables_name_is_there():
    """Work is imported where it is done; a typo must not wait for that."""
    named = [stage.work for stage in STAGES.values()]
    for task in TASKS.values():
        named += filter(
            None, (task.shard, task.training, task.before_shard, task.files, task.generator)
        )
    for name in [*named, *KINDS.values()]:
        assert callable(load(name)), name
    recipe = load_recipe("ar_tiny")
    for stage in STAGES.values():
        for key in (*stage.sources, *filter(None, [stage.ranks, stage.tasks])):
            setting(recipe, key)
    for task in TASKS.values():
        for key in task.settings:
            setting(recipe, key)


def test_from_a_stage_on():
    assert stage_and_following("train") == ["train", "generate", "evaluate", "report"]
    assert stage_and_following("download") == list(STAGES)
    with pytest.raises(ch.RequestError, match="unknown stage 'trian'; did you mean train"):
        stage_named("trian")


def test_stages_of_a_recipe():
    words = ["train.gpus=2", "train.micro_batch_size=4", "generate.tasks=3"]

    def sizes(*more):
        stages = list_stages(7, load_recipe("ar_tiny", [*words, *more]))
        return {stage.name: (stage.tasks, stage.ranks) for stage in stages}

    trains = {"preprocess": (7, 1), "finalize": (1, 1), "train": (1, 2)}
    ends = {"generate": (3, 1), "evaluate": (1, 1), "report": (1, 1)}
    assert sizes() == {"download": (1, 1), **trains, **ends}
    without = sizes("generate.tasks=0")
    assert without == {"download": (1, 1), **trains, "report": (1, 1)}
    alone = sizes("generate.input=frame.png")
    assert alone == {"download": (1, 1), "generate": (3, 1), "report": (1, 1)}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("preprocess.9", "there is no preprocess.9 in run mine: its tasks are 0 to 3"),
        ("finalize.1", "there is no finalize.1 in run mine: its only task is 0"),
        ("trian", "unknown stage 'trian'; did you mean train?"),
        ("evaluate", "there is no stage evaluate in run mine; there are download, preprocess,"),
    ],
)
def test_what_a_run_does_not_have_is_neither_shown_nor_tried_again(tmp_path, asked, says):
    run = write_run(tmp_path / "runs/mine", "generate.tasks=0")
    run.data.pin("", [f"{n}.mp4" for n in range(8)], 4)
    for words in (["logs"], ["logs", "--follow"], ["retry"]):
        shown = cosmos_hpc(words[0], "mine", asked, *words[1:], cwd=tmp_path)
        assert (shown.code, shown.out) == (2, "")
        assert says in shown.err
    there = cosmos_hpc("logs", "mine", "preprocess.3", cwd=tmp_path)
    assert "run mine has no log of preprocess.3 yet" in there.err


@pytest.mark.slow
def test_a_new_stage_is_a_row_and_a_file(tmp_path, scenes):
    """It runs, is shown, logged, retried and planned for; stages that it does not need are not."""
    place = {"PYTHONPATH": package_with_a_stage(tmp_path / "package", array=False)}

    def command(*words):
        outcome = cosmos_hpc(*words, cwd=tmp_path, env=place)
        assert outcome.code == 0, outcome.err
        return outcome

    request = ("submit", "recipe=ar_tiny", f"data.input={scenes}", "data.videos_per_shard=4")
    stages = ("--name", "counted", "--stages", "download,preprocess,count")
    assert "stages/count.json 0" in command(*request, *stages, "--dry-run").out
    usual = command(*request, "--name", "usual", "--dry-run").out
    assert "train.json 0" in usual and "count.json" not in usual
    shown = command(*request, *stages)
    assert re.search(r"count +done, 1 counted", shown.err)
    state = json.loads(command("status", "counted", "--json").out)
    states = {stage["name"]: stage["state"] for stage in state["stages"]}
    assert states == {
        **dict.fromkeys(("download", "preprocess", "count"), "done"),
        **dict.fromkeys(("finalize", "train"), "waiting"),
    }
    assert state["state"] == "partial"
    assert "8 clips" in command("logs", "counted", "count").out
    marker = tmp_path / "runs" / "counted" / "counts" / "all.json"
    assert files.read_json(marker) == {"clips": 8}
    marker.unlink()
    command("retry", "counted", "count")
    assert files.read_json(marker) == {"clips": 8}
    wrong = cosmos_hpc(*request, "--stages", "cuont", cwd=tmp_path, env=place)
    assert (wrong.code, "did you mean count" in wrong.err) == (2, True)


def test_a_stopped_training_says_what_of_it_is_saved(tmp_path):
    begun = write_run(tmp_path / "runs/begun", "train.max_steps=9", steps=3)
    saved = write_run(tmp_path / "runs/saved", "train.max_steps=9", steps=3, saved=[2])
    for run in (begun, saved):
        note_log(run, "train", 0, run.path / "logs/train.log")
    status = cosmos_hpc("status", "begun", cwd=tmp_path).out
    assert "step 3/9, loss 4.700, validation loss 4.500, no checkpoint yet\n" in status
    status = cosmos_hpc("status", "saved", cwd=tmp_path).out
    assert "step 3/9, loss 4.700, validation loss 4.500, saved up to step 2\n" in status
    with worked_on(saved):
        status = cosmos_hpc("status", "saved", cwd=tmp_path).out
    assert "step 3/9, loss 4.700, validation loss 4.500, 1.00 s/step, 6 s left" in status
