"""Samples on a real Slurm: an array of jobs, through a kill, the same as on one machine."""

import json
import os
import signal

import pytest
from msgspec.structs import replace

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from tests.slurm.login import Login
from tests.worker.generation.setting_up import (
    SMALL,
    all_tokens,
    generating,
    run_all,
    video,
    weights_file,
)

pytestmark = pytest.mark.slow


def test_an_array_of_samples_is_the_same_through_a_killed_worker(lab, tmp_path):
    login = Login(lab, tmp_path)
    for number in range(4):
        video(tmp_path / f"{number}.mp4", 12, seed=number)
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{number}.mp4\n" for number in range(4)))
    weights_file(tmp_path / "weights.safetensors", load_recipe("ar_tiny", SMALL))
    words = (*SMALL, "samples=3", "batch_size=1", "tasks=2", "cluster=mine", "recipe=ar_tiny")
    request = ("generate", tmp_path / "weights.safetensors", f"input={listed}", *words)
    dry = login.command(*request, "--name", "drawn", "--dry-run")
    assert dry.code == 0, dry.err
    assert "#SBATCH --array=0-1%2" in dry.out
    assert "generate    3 samples each of 4 inputs, in 2 array tasks" in dry.out
    assert "--job-name=preprocess" not in dry.out
    done = login.command(*request, "--name", "drawn")
    assert done.code == 0, done.err
    run = RunFolder(login.run("drawn"))
    # One of the two workers is killed when it has made a sample.
    login.until(lambda: list(run.generated.path.glob("*.json")))
    note = next(p for p in run.task_lock("generate", 0).parent.glob("generate.*"))
    worker = login.until(lambda: note.read_text().split())[1]
    os.kill(int(worker), signal.SIGKILL)
    login.wait("drawn", "report", "done", "failed")
    status = login.status("drawn")
    assert status["state"] == "done", login.explain("drawn")
    assert [stage["name"] for stage in status["stages"]] == ["download", "generate", "report"]
    assert json.loads((run.path / "generated/tasks/00000.json").read_text())["samples"] == 6
    alone, recipe = generating(
        tmp_path / "alone", "ar_tiny", f"generate.input={listed}", "generate.samples=3"
    )
    run_all(alone, replace(recipe, generate=run.recipe().generate))
    assert all_tokens(run) == all_tokens(alone)
    assert len(files.read_jsonl(run.jobs)) >= 3
