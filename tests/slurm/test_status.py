"""What ``status`` and ``logs`` say of jobs, with and without accounting, and away from Slurm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cosmos_hpc.run import Run
from tests.conftest import REPOSITORY, cosmos_hpc
from tests.slurm.login import Login
from tests.slurm.test_interruptions import notes, worker


@pytest.fixture(scope="module")
def login(any_lab, tmp_path_factory):
    return Login(any_lab, tmp_path_factory.mktemp("login"))


def test_a_job_that_died_without_a_word_is_not_said_to_run(login, scenes):
    """Its whole script is killed, which leaves no note."""
    login.submit("silent", f"data.input={scenes}", "--stages", "download,preprocess")
    pid = login.until(lambda: worker(login, "silent", "preprocess", 1), 90)
    os.kill(pid, signal.SIGSTOP)
    job = next(j for j in login.jobs("silent", "preprocess") if j.endswith("_1"))
    login.lab.run("scancel", "--signal=KILL", "--batch", job)
    login.until(lambda: job not in login.jobs("silent", "preprocess"), 60)
    state = login.wait("silent", "preprocess", "failed", "done")
    assert "ended without a reason on n1" in state["errors"]["1"], state
    assert ("Slurm says" in state["errors"]["1"]) == login.lab.accounting
    assert [n["why"] for n in notes(login, "silent", "preprocess", 1)] == [""]
    shown = login.command("status", "silent")
    assert "task 1: ended without a reason" in shown.out
    assert "cosmos-hpc retry silent" in shown.out
    assert login.command("retry", "silent", "preprocess.1").code == 0
    assert login.wait("silent", "preprocess", "failed", "done")["state"] == "done"


def test_what_is_queued_says_why(login, scenes):
    login.submit("held", f"data.input={scenes}", "cluster.sbatch=['--hold']")
    state = login.status("held")
    assert state["state"] == "queued"
    assert [s["jobs"] for s in state["stages"]] == [{"PENDING": n} for n in (1, 2, 1, 1, 1, 1, 1)]
    assert state["stages"][0]["waiting_for"] == "JobHeldUser"
    # What the first jobs wait for is not said again of those that wait for them.
    assert [s["waiting_for"] for s in state["stages"][1:]] == [""] * 6
    shown = login.command("status", "held").out.splitlines()
    reasons = [line.strip() for line in shown if "pending for" in line or "waits for" in line]
    stages = [stage["name"] for stage in state["stages"]]
    assert reasons == ["pending for JobHeldUser", *(f"waits for {name}" for name in stages[:-1])]
    assert login.command("logs", "held").code == 2
    # Another submit of the same finds them there.
    again = login.submit("held", f"data.input={scenes}", "cluster.sbatch=['--hold']")
    assert "nothing is missing that is not in the queue" in again.err
    assert len(login.jobs("held", "preprocess", "PENDING")) == 2
    outcome = login.command("cancel", "held")
    assert outcome.code == 0
    assert "held: stopped" in outcome.out
    assert login.queued("held") == []


def test_what_was_not_asked_for_is_not_begun(login, scenes):
    login.submit("part", f"data.input={scenes}", "--stages", "download")
    login.wait("part", "download")
    login.until(lambda: login.queued("part") == [])
    state = login.status("part")
    assert state["state"] == "partial"
    assert "cosmos-hpc retry part preprocess" in state["note"]
    again = login.command("retry", "part")
    assert "nothing is missing that is not in the queue" in again.err, again.err
    assert login.queued("part") == []
    # Named by its path, from elsewhere.
    moved = cosmos_hpc("status", login.run("part"), cwd=Path("/"), env=login.lab.environment)
    assert f"cosmos-hpc retry {login.run('part')} preprocess" in moved.out


def test_watched_until_nothing_is_in_the_queue(login, scenes, tmp_path, monkeypatch, capsys):
    """Until the script of a job has ended, settings that it may read cannot change."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\n{sys.executable} "$@" && sleep 4\n')
    python.chmod(0o755)
    words = (f"data.input={scenes}", "--stages", "download")
    login.submit("lingers", *words, f"cluster.python={python}")
    for name, value in login.lab.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("cosmos_hpc.run.seconds_between_looks", lambda run: 0.5)
    Run(login.run("lingers")).watch()
    assert "lingers: partial" in capsys.readouterr().out
    assert login.queued("lingers") == []


def test_away_from_slurm_nothing_is_claimed(login, scenes):
    login.submit("away", f"data.input={scenes}", "--stages", "download")
    login.wait("away", "download")
    outcome = login.command("status", "away", "--json", PATH="/nowhere")
    state = json.loads(outcome.out)
    assert [s["state"] for s in state["stages"]] == ["done", "unknown", "unknown", "unknown"]
    assert state["state"] == "unknown"
    assert "what is in the queue is not known: squeue is not on the PATH" in state["note"]
    for command in ("cancel", "retry"):
        outcome = login.command(command, "away", PATH="/nowhere")
        assert outcome.code == 2
        assert "is not on the PATH: run this on a login node" in outcome.err
        assert "Traceback" not in outcome.err


def test_logs_follow_a_run_to_its_end(login, scenes):
    login.submit("followed", f"data.input={scenes}", "--stages", "download,preprocess")
    outcome = login.command("logs", "followed", "preprocess", "--follow")
    assert outcome.code == 0, outcome.err
    assert "is complete" in outcome.out
    assert login.command("logs", "followed", "preprocess.7").code == 2
    named = login.command("logs", "followed").out
    assert [f"==> preprocess.{n} " in named for n in range(2)] == [True] * 2


def test_where_jobs_of_others_are_hidden_nothing_is_claimed(login, scenes):
    """A colleague looks at the run on a cluster with ``PrivateData=jobs``."""
    login.submit("private", f"data.input={scenes}", "cluster.sbatch=['--hold']")
    conf = login.lab.folder / "etc" / "slurm.conf"
    before = conf.read_text()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        # The folder of the tests is closed to others.
        seen = Path(folder) / "private"
        shutil.copytree(login.run("private"), seen)
        shows = ("-m", "cosmos_hpc", "status", str(seen), "--json")
        conf.chmod(0o644)
        login.lab.folder.chmod(0o755)

        def colleague(*words):
            return subprocess.run(
                [sys.executable, *(words or shows)],
                env={**login.lab.environment, "PYTHONPATH": str(REPOSITORY)},
                cwd=folder,
                user=65534,
                extra_groups=[],
                capture_output=True,
                text=True,
            )

        try:
            started = colleague("-c", "import cosmos_hpc, msgspec")
        except PermissionError:
            pytest.skip(f"nobody may not run this Python, {sys.executable}")
        if started.returncode:
            pytest.skip(f"nobody may not run this Python: {started.stderr[-200:]}")
        shown = colleague()
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["state"] == "queued"
        try:
            conf.write_text(before + "PrivateData=jobs\n")
            login.lab.run("scontrol", "reconfigure")
            state = json.loads(login.until(lambda: hidden(colleague())))
        finally:
            conf.write_text(before)
            login.lab.run("scontrol", "reconfigure")
    assert state["state"] == "unknown"
    assert "shows nobody the jobs of others" in state["note"]
    assert login.status("private")["state"] == "queued"
    login.command("cancel", "private")


def hidden(outcome):
    """The state that was shown, once it is not that of the queue any more."""
    return "" if '"state": "queued"' in outcome.stdout else outcome.stdout
