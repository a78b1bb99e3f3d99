"""Submitting more of a run while some of it is in the queue, or was cancelled, on a real Slurm."""

import json
import subprocess
import sys

import pytest

from tests.slurm.login import Login
from tests.slurm.test_interruptions import notes

PREPARE = ("--stages", "download,preprocess,finalize")
HELD = "cluster.sbatch=['--hold']"


@pytest.fixture(scope="module")
def login(lab, tmp_path_factory):
    return Login(lab, tmp_path_factory.mktemp("login"))


def dependencies(login, name):
    """What the jobs of a run wait for, by stage."""
    rows = (line.split() for line in login.queue("%j %E"))
    return {job.partition(".")[0]: on for job, on in rows if f".{name}." in job}


@pytest.mark.slow
def test_what_waits_for_a_stage_waits_for_a_task_that_is_retried(login, scenes):
    """Else it is cancelled, because the task's first attempt has failed."""
    login.submit("again", f"data.input={scenes}", *PREPARE, HELD)
    download, array, finalize = login.submitted("again")
    login.lab.run("scancel", f"{array}_1")
    outcome = login.command("retry", "again", "preprocess.1")
    assert outcome.code == 0, outcome.err
    assert f"in the queue job {finalize} waits too" in outcome.err
    new = login.submitted("again")[-1]
    waits_for = dependencies(login, "again")["finalize"]
    assert f"afterok:{new}_*" in waits_for and f"afterany:{array}_*" in waits_for
    login.lab.run("scontrol", "release", download, array, finalize, new)
    assert login.wait("again", "finalize", "done", "failed", "waiting")["state"] == "done", (
        login.explain("again")
    )


def test_an_array_that_waits_for_another_waits_for_the_stage_before_as_well(login, scenes):
    """The other one ends as well when the stage before fails: it is cancelled."""
    sizes = ("cluster.max_array_size=2", "cluster.parallel=1", "data.videos_per_shard=2")
    login.submit("chunks", f"data.input={scenes}", *sizes, *PREPARE, HELD)
    download, first, second, _ = login.submitted("chunks")
    assert login.queue("%i %E", f"--jobs={second}")[0].endswith(
        f"afterok:{download}(unfulfilled),afterany:{first}_*(unfulfilled)"
    )
    login.command("cancel", "chunks")


@pytest.mark.slow
def test_a_warning_while_a_task_is_finished_is_not_forgotten(login, scenes, tmp_path):
    """Slurm does not warn again: the next task would run into the time limit."""
    python = tmp_path / "python"
    # Of the first shard the worker has just ended when the warning comes.
    python.write_text(
        f'#!/bin/bash\n{sys.executable} "$@" || exit\n'
        '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] && [ "${@: -1}" = 0 ] || exit 0\n'
        "case $* in */preprocess.json*) ;; *) exit 0 ;; esac\n"
        'scancel --signal=USR1 --batch "$SLURM_JOB_ID" && sleep 2\n'
    )
    python.chmod(0o755)
    words = ("cluster.max_submit=4", "data.videos_per_shard=2", f"cluster.python={python}")
    login.submit("late", f"data.input={scenes}", *words, *PREPARE)
    login.wait("late", "finalize", "done", "failed")
    assert [n["why"] for n in notes(login, "late", "preprocess", 0)] == ["", "done"]
    # The turn of the same array task: two of them take two shards each.
    following = [n["why"] for n in notes(login, "late", "preprocess", 2)]
    assert following == ["", "stopped", "", "done"]


def test_what_a_person_has_set_for_squeue_hides_no_job(login, scenes):
    request = (f"data.input={scenes}", *PREPARE, HELD)
    own = {"SQUEUE_PARTITION": "urgent", "SQUEUE_FORMAT2": "jobid", "SCANCEL_INTERACTIVE": "yes"}
    login.submit("mine", *request, **own)
    again = login.submit("mine", *request, **own)
    assert "nothing is missing that is not in the queue" in again.err
    assert login.command("cancel", "mine", **own).code == 0
    assert login.queued("mine") == []


def test_submit_leaves_its_input_to_others(login, scenes):
    """``while read name; do cosmos-hpc submit ...; done <names``."""
    words = ["submit", "recipe=ar_tiny", "cluster=mine", "--name", "loop", "--stages", "download"]
    command = [sys.executable, "-m", "cosmos_hpc", *words, f"data.input={scenes}", HELD]
    done = subprocess.run(
        ["bash", "-c", '"$@" && cat', "-", *command],
        input="the next name\n" * 1000,
        env=login.lab.environment,
        cwd=login.home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the next name\n" * 1000)
    assert done.stdout.count("the next name") == 1000
    login.command("cancel", "loop")


def test_a_dry_run_does_not_change_what_is_queued(login, scenes):
    request = ("submit", "recipe=ar_tiny", f"data.input={scenes}", "--name", "live")
    login.submit("live", f"data.input={scenes}", HELD)
    kept = [login.run("live") / name for name in ("stages/train.json", "cluster.yaml")]
    before = [path.read_text() for path in kept]
    for words, said in (
        (("cluster=mine", "train.max_steps=7", "--dry-run"), "with train.max_steps="),
        (("cluster=mine", "train.gpus=2"), "with train.gpus=1, not 2"),
        (("cluster=local", "--dry-run"), "this request is for local"),
    ):
        outcome = login.command(*request, *words)
        assert outcome.code == 2, outcome.out
        assert "run live has jobs in the queue of cluster mine" in outcome.err and said in (
            outcome.err
        )
        assert [path.read_text() for path in kept] == before
    assert login.command(*request, "cluster=mine", HELD, "--dry-run").code == 0
    # How far to go may change: the job reads it when it begins.
    assert login.command(*request, "cluster=mine", HELD, "train.max_steps=7").code == 0
    assert json.loads(kept[0].read_text())["recipe"]["train"]["max_steps"] == 7
    assert login.command("cancel", "live").code == 0


def test_the_pasted_dry_run_of_a_cancelled_run_works(login, scenes):
    request = (f"data.input={scenes}", "--stages", "download")
    login.submit("anew", *request, HELD)
    assert login.command("cancel", "anew").code == 0
    text = login.submit("anew", *request, "--dry-run").out
    environment = login.lab.environment
    subprocess.run(["bash"], input=text, env=environment, check=True, text=True, cwd=login.home)
    login.wait("anew", "download", "done", "failed", "stopped")
    assert login.stage("anew", "download")["state"] == "done", login.explain("anew")
