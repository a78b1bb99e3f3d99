"""NeMo-Run's experiments with the stages of a run, on a real Slurm."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

from cosmos_hpc.runs.folder import RunFolder
from tests.conftest import CANARIES, SMALL_CLIPS, steps_of
from tests.nemo_run import EXPERIMENT, assert_no_secrets, documented, run_program
from tests.slurm.login import Login
from tests.slurm.test_interruptions import worker

pytestmark = pytest.mark.slow

PREPARE = "download,preprocess,finalize"
#: As many as the profile has run at a time.
SHARDS = ["preprocess-0", "preprocess-1"]


@pytest.fixture
def login(lab, tmp_path):
    return Login(lab, tmp_path)


def start(login, text, *arguments, **env):
    """Run a program on the login node; returns the ids of its jobs by their tasks."""
    before = set(ids(login))
    said = run_program(text, *arguments, cwd=login.home, env={**login.lab.environment, **env})
    jobs = {show(login, job)["JobName"]: job for job in ids(login) if job not in before}
    return {name.removeprefix("cosmos-hpc."): job for name, job in jobs.items()}, said


def ids(login):
    return login.queue("%i", "--states=all")


def show(login, job):
    """What Slurm says of a job."""
    words = login.lab.run("scontrol", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait(login, job, *states, seconds=300):
    """Wait until a job is in one of these states; returns what Slurm says of it."""
    deadline = time.monotonic() + seconds
    while (shown := show(login, job))["JobState"] not in states:
        assert time.monotonic() < deadline, explain(login)
        time.sleep(0.2)
    return shown


def explain(login):
    logs = [p.read_text()[-3000:] for p in (login.home / "home").rglob("*.out")]
    return "\n".join([login.lab.run("squeue"), *logs])


def test_the_documented_example(login, scenes):
    jobs, said = start(login, documented("# python experiment.py"), "mine", scenes, **CANARIES)
    assert set(jobs) == {"download", *SHARDS, "finalize", "count"}
    shown = show(login, jobs["preprocess-1"])
    assert shown["Partition"] == "gpu"
    assert shown["TimeLimit"] == "04:00:00"
    assert shown["Requeue"] == "1"
    assert "gpu:h100:1" in shown["TresPerNode"]
    assert wait(login, jobs["count"], "COMPLETED", "FAILED", "CANCELLED")["JobState"] == "COMPLETED"
    tokens = login.run("mine") / "tokens"
    assert (tokens / "number-of-clips").read_text().strip() == "8"
    assert {show(login, job)["JobState"] for job in jobs.values()} == {"COMPLETED"}
    assert login.status("mine")["stages"][2]["state"] == "done"
    assert_no_secrets(login.home, said)
    scripts = list((login.home / "home").rglob("preprocess-0_sbatch.sh"))
    assert re.search(r"--export=\S*HF_TOKEN", scripts[0].read_text())


def test_training_on_two_nodes_stops_when_it_is_warned_and_goes_on(login, scenes):
    """In a folder whose name is hard on a shell; secrets are around, and W&B uses one."""
    home = login.home / "it's my $HOME"
    home.mkdir()
    runs = f"cluster.runs={home}"
    training = ("train.gpus=2", "train.max_steps=16", "train.save_every=50")
    training += ("train.global_batch_size=4", "train.micro_batch_size=2", *SMALL_CLIPS)
    words = (f"data.input={scenes}", runs, "cluster.gpus_per_node=1", *training)
    login.submit("two", *words, "--dry-run")
    run = RunFolder(home / "two")
    env = {**CANARIES, "WANDB_MODE": "offline"}
    jobs, said = start(login, EXPERIMENT, run.path, f"{PREPARE},train", **env)
    assert set(jobs) == {"download", *SHARDS, "finalize", "train"}
    login.until(lambda: steps_of(run) >= 3)
    # What Slurm does some time before the limit, with --signal=B:USR1@SECONDS.
    login.lab.run("scancel", "--batch", "--signal=USR1", jobs["train"])
    login.until(lambda: show(login, jobs["train"])["Restarts"] == "1")
    stopped = steps_of(run)
    assert 3 <= stopped < 16
    assert list(run.train.checkpoints.glob(f"step={stopped - 1}-*"))
    shown = wait(login, jobs["train"], "COMPLETED", "FAILED", "CANCELLED")
    assert shown["JobState"] == "COMPLETED", explain(login)
    assert (shown["NumNodes"], shown["Restarts"]) == ("2", "1")
    steps = [row["step"] for row in map(json.loads, run.train.metrics.open()) if "loss" in row]
    assert steps == list(range(1, 17))
    logs = "".join(p.read_text() for p in (login.home / "home").rglob("log-*train*.out"))
    assert "Starting with 2 processes" in logs
    assert "wandb" in logs.lower()
    assert_no_secrets(login.home, said)


def test_what_is_not_to_be_tried_again_is_not(login, tmp_path, scenes):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "0.mp4").write_text("no video")
    login.submit("broken", f"data.input={videos}", "data.max_failed_fraction=0", "--dry-run")
    jobs, _ = start(login, EXPERIMENT, "runs/broken", f"{PREPARE},train")
    shown = wait(login, jobs["finalize"], "FAILED", "COMPLETED")
    assert (shown["JobState"], shown["Restarts"]) == ("FAILED", "0")
    wait(login, jobs["train"], "CANCELLED")
    assert "no video could be prepared" in login.stage("broken", "finalize")["errors"]["0"]
    # What ended without a word is, but not as often as a job that was asked to stop.
    words = ("cluster.python=/bin/false", "cluster.retries=1")
    login.submit("silent", f"data.input={scenes}", *words, "--dry-run")
    jobs, _ = start(login, EXPERIMENT, "runs/silent", "download")
    assert wait(login, jobs["download"], "FAILED", "COMPLETED")["Restarts"] == "1"
    # What was cancelled stays so. The worker of the first shard waits at its start.
    python = tmp_path / "python"
    held = "case $* in */preprocess.json\\ 0) kill -STOP $$ ;; esac"
    python.write_text(f'#!/bin/bash\n{held}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    login.submit("long", f"data.input={scenes}", f"cluster.python={python}", "--dry-run")
    jobs, _ = start(login, EXPERIMENT, "runs/long", "download,preprocess")
    login.until(lambda: worker(login, "long", "preprocess"))
    login.lab.run("scancel", jobs["preprocess-0"])
    wait(login, jobs["preprocess-0"], "CANCELLED")
    time.sleep(7)  # longer than a requeue takes
    assert show(login, jobs["preprocess-0"])["JobState"] == "CANCELLED"


@pytest.fixture
def job_folder():
    """The working folder of NeMo-Run's jobs in containers; the tests' pyxis has none of its own."""
    folder = Path("/nemo_run/code")
    if folder.parent.exists():
        pytest.skip(f"there is a {folder.parent} on this machine")
    folder.mkdir(parents=True)
    yield
    folder.rmdir()
    folder.parent.rmdir()


def test_in_a_container(pyxis_lab, job_folder, tmp_path, scenes):
    """What pyxis is asked for: by NeMo-Run its folder of the job, by the profile all else."""
    login = Login(pyxis_lab, tmp_path)
    image = tmp_path / "image.sqsh"
    image.touch()
    words = (f"cluster.container={image}", f"cluster.python={sys.executable}")
    login.submit("boxed", f"data.input={scenes}", *words, "--dry-run")
    jobs, said = start(login, EXPERIMENT, "runs/boxed", "download", **CANARIES)
    shown = wait(login, jobs["download"], "COMPLETED", "FAILED")
    assert shown["JobState"] == "COMPLETED", explain(login)
    assert login.stage("boxed", "download")["state"] == "done"
    steps = [dict(step["options"]) for step in pyxis_lab.container_steps()]
    (step,) = [options for options in steps if options.get("container-image") == str(image)]
    mounts = step["container-mounts"].split(",")
    assert {f"{path}:{path}" for path in (login.run("boxed"), scenes)} < set(mounts)
    assert mounts[-1].endswith("/download:/nemo_run")
    assert step["container-workdir"] == "/nemo_run/code"
    assert {"no-container-mount-home", "container-writable"} <= set(step)
    assert "HF_TOKEN" in step["container-env"].split(",")
    assert_no_secrets(login.home, said)
