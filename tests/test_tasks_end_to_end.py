"""Texts and actions in, a trained model out, through a killed worker and a resume; and a model of
the other tokenizer.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosmos_hpc.api import Run
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.sources import find_source, generation_recipe
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from tests.conftest import SMALL_CLIPS, cosmos_hpc, real_data, steps_of
from tests.worker.lerobot import FRONT, WRIST, Robot
from tests.worker.robots import write_bridge

pytestmark = pytest.mark.slow

STEPS = (
    "train.max_steps=8",
    "train.save_every=3",
    "train.validate_every=4",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "generate.tasks=0",
)


def losses(path):
    found = Run(path).losses()
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    assert all(math.isfinite(loss) for _, loss in found)
    return [loss for _, loss in found]


def check_learning(path):
    """From the loss of an untrained model down by more than chance does."""
    seen = losses(path)
    assert seen[0] == pytest.approx(math.log(64000), abs=0.2)
    assert seen[-1] < seen[0] - 0.7
    return seen


def submit_twice(home, *request):
    """A run whose training is killed some steps after a checkpoint, and ended by the same command.

    The steps after the checkpoint are done twice, with the same losses.
    """
    command = [sys.executable, "-m", "cosmos_hpc", "submit", *request, *STEPS, "--name", "x"]
    run = RunFolder(home / "runs" / "x")
    with open(home / "log", "w") as log:
        submit = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, start_new_session=True)
        while not list(run.train.checkpoints.glob("step=2-*")) or steps_of(run) < 5:
            assert submit.poll() is None, (home / "log").read_text()
            time.sleep(0.05)
        os.killpg(submit.pid, signal.SIGINT)
        submit.wait(timeout=60)
        before = losses(run.path)
        subprocess.run(command, cwd=home, stdout=log, stderr=log, check=True, timeout=250)
    text = (home / "log").read_text()
    assert text.count("  train       starting") == 2
    assert 5 <= len(before) < 8
    assert check_learning(run.path)[: len(before)] == pytest.approx(before, rel=1e-4)
    return run


def test_videos_with_prompts_in_a_trained_model_out(tmp_path, scenes):
    listed = tmp_path / "list.jsonl"
    rows = [
        {"visual_input": str(scenes / f"scene-{i:04d}.mp4"), "prompt": f"a street, take {i % 3}"}
        for i in range(8)
    ]
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = ("recipe=ar_tiny_v2w", f"data.input={listed}", *SMALL_CLIPS)
    run = submit_twice(tmp_path, *request)
    marker = files.read_json(marker_path(run, "train"))
    assert marker["clips"] == {"train": 6, "validation": 1, "test": 1}
    assert math.isfinite(marker["validation_loss"])
    assert "x: done" in cosmos_hpc("status", "x", cwd=tmp_path).out


def test_robot_clips_in_a_trained_model_out(tmp_path):
    bridge = real_data("bridge") or write_bridge(tmp_path / "bridge", {"train": 9, "val": 3})
    run = submit_twice(tmp_path, "recipe=ar_tiny_action", f"data.input={bridge}")
    marker = files.read_json(marker_path(run, "train"))
    pairs = files.read_json(marker_path(run, "finalize"))["samples"]["pairs"]
    assert marker["clips"]["train"] == pairs["train"] > 0
    assert math.isfinite(marker["validation_loss"])


def test_a_robots_data_set_on_the_hub_ends_in_rollouts_in_a_report(tmp_path, hub):
    """The walk-through of docs/data.md, with a small model."""
    robot = Robot((4, 5, 3, 4, 5, 6, 3, 4), cameras=(FRONT, WRIST), files=4)
    hub.publish("datasets/lab/so100", robot.write(tmp_path / "robot"))
    request = (
        "recipe=ar_tiny_action",
        "data.input=hf://datasets/lab/so100",
        "data.camera=front",
        "data.normalize_action=mean_std",
        "model.action_width=null",
        "train.max_steps=3",
        "train.save_every=3",
        "train.global_batch_size=4",
        "train.micro_batch_size=4",
    )

    def say(*words):
        done = cosmos_hpc(*words, cwd=tmp_path)
        assert done.code == 0, done.err
        return done.out

    assert "8 videos" in say("submit", *request, "--name", "robot")
    assert "robot: done" in say("status", "robot")
    assert "after post-training" in say("evaluate", "robot")
    say("report", "robot")
    run = RunFolder(tmp_path / "runs" / "robot")
    (episode,) = {sample.record["video_name"] for sample in Run(run.path).samples()}
    length = robot.lengths[int(episode.removeprefix("episode_"))]
    page = (run.path / "report" / "report.html").read_text()
    assert f'data-frames="{length}" data-given="1" data-rate="10.0" data-unit="step"' in page
    assert f"{episode} of " in page and "step of the rollout" in page
    # Its weights keep the statistics by which new actions are made alike.
    wanted = ["input=now.png", "actions=moves.json"]
    stats = Path(generation_recipe(find_source(str(run.path)), wanted).generate.action_stats)
    assert stats.parent.parent == run.train.checkpoints
    assert files.read_json(stats) == files.read_json(run.tokens.action_stats)
    assert files.read_json(stats)["normalize"] == "mean_std"


def test_the_other_tokenizer_works_down_to_training(tmp_path, scenes):
    other = ("data.compression=[4,8,8]", "data.frames=9", *SMALL_CLIPS)
    source = tmp_path / "list.jsonl"
    videos = sorted(scenes.glob("*.mp4"))
    rows = [{"visual_input": str(v), "prompt": f"a street, {v.stem}"} for v in videos]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cosmos_hpc(
        "submit", "recipe=ar_tiny_v2w", f"data.input={source}", *other, *STEPS, "--name", "x",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    run = RunFolder(tmp_path / "runs" / "x")
    assert run.recipe().data.latent_shape == (3, 6, 10)
    check_learning(run.path)
