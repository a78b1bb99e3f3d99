"""Slurm as some sites have it: commands that greet, on standard output, before they answer."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cosmos_hpc.runs.stages import STAGES
from tests.conftest import executables
from tests.slurm.lab import Lab
from tests.slurm.login import Login

GREETING = "-----\nWelcome to the cluster, 24 users are on 3 nodes\n-----"


@pytest.fixture
def login(lab, tmp_path):
    return Login(lab, tmp_path / "login")


def greeting(folder, lab, *names, after=""):
    """A folder for the PATH with commands of Slurm that say something of the site first."""
    path = lab.environment["PATH"]
    texts = {
        name: f"echo '{GREETING}'\n{shutil.which(name, path=path)} \"$@\"{after}" for name in names
    }
    return {"PATH": f"{executables(folder, **texts)}:{path}"}


def test_greetings_are_no_ids(login, lab, tmp_path, scenes):
    """A run is submitted, shown, and taken out of the queue again."""
    site = greeting(tmp_path / "site", lab, "sbatch", "squeue", "sinfo", "scancel", "scontrol")
    request = (f"data.input={scenes}", "cluster.sbatch=['--hold']", "cluster.max_submit=50")
    request += ("cluster.cpu_partition=cpu,urgent",)
    login.submit("greeted", *request, **site)
    names = [name.partition(".")[0] for name in login.queued("greeted")]
    assert sorted(names) == sorted([*STAGES, "preprocess"])
    assert all(job.isdigit() for job in login.submitted("greeted"))
    assert set(login.queue("%P")) == {"cpu,urgent", "gpu"}
    # Each waits for the one before.
    waits = login.queue("%j %E", "--state=PENDING")
    assert sum("afterok:" in line for line in waits if ".greeted." in line) == 7
    shown = login.command("status", "greeted", **site)
    assert "in the queue: 2 PENDING" in shown.out
    assert login.command("cancel", "greeted", **site).code == 0
    assert login.queued("greeted") == []


def test_an_sbatch_that_tells_no_id_leaves_nothing_behind(login, lab, tmp_path, scenes):
    """Its jobs are found by their names."""
    silent = greeting(tmp_path / "site", lab, "sbatch", after=" | grep -v '^[0-9]'; true")
    login.submit("silent", f"data.input={scenes}", "cluster.sbatch=['--hold']", **silent)
    assert len(login.queued("silent")) == 8
    queued = {line.partition("_")[0] for line in login.queue("%i")}
    assert set(login.submitted("silent")) <= queued
    assert login.command("cancel", "silent").code == 0
    assert login.queued("silent") == []


def test_jobs_on_another_cluster_are_not_taken_for_ended(login, lab, tmp_path, scenes):
    """Two clusters may share a file system; here a second one has an empty queue."""
    login.submit("there", f"data.input={scenes}", "cluster.sbatch=['--hold']")
    scontrol = shutil.which("scontrol", path=lab.environment["PATH"])
    other = executables(
        tmp_path / "other", squeue="", scontrol=f"{scontrol} \"$@\" | sed 's/= lab$/= other/'"
    )
    elsewhere = {"PATH": f"{other}:{lab.environment['PATH']}"}
    shown = login.command("status", "there", **elsewhere)
    assert "is not known: run there was submitted to cluster lab, and Slurm here is" in shown.out
    assert "nothing of it is in the queue" not in shown.out
    refused = login.command("retry", "there", **elsewhere)
    assert refused.code == 2
    assert "use a login node of lab, or remove" in refused.err
    assert len(login.queued("there")) == 8
    assert login.command("cancel", "there").code == 0


def test_a_worker_that_does_not_start_says_why(login, scenes):
    """Here its Python is not there; an image or a mount that is gone ends in the same way."""
    words = ("--stages", "download", "cluster.python=/no/python", "cluster.retries=0")
    login.submit("unstarted", f"data.input={scenes}", *words)
    state = login.wait("unstarted", "download", "failed", "done", seconds=120)
    (reason,) = state["errors"].values()
    assert "did not start, attempt 1 of 1, on n" in reason
    assert "/no/python: No such file or directory" in reason
    assert "out of memory" not in reason


def test_a_submission_that_fails_half_way_leaves_nothing_queued(login, lab, tmp_path, scenes):
    """Slurm takes the first jobs, and does not say so of the last one."""
    path = lab.environment["PATH"]
    real = shutil.which("sbatch", path=path)
    fails = (
        f"echo '{GREETING}'\n"
        'case "$*" in *--test-only*) ;;'
        f' *train_sbatch*) {real} "$@"; echo "sbatch: error: no" >&2; exit 1;; esac\n'
        f'{real} "$@"'
    )
    site = {"PATH": f"{executables(tmp_path / 'site', sbatch=fails)}:{path}"}
    outcome = login.command(
        *("submit", "recipe=ar_tiny", "cluster=mine", f"data.input={scenes}", "--name", "half"),
        "cluster.sbatch=['--hold']",
        **site,
    )
    assert (outcome.code, "Slurm does not take" in outcome.err) == (2, True), outcome.err
    login.until(lambda: login.queued("half") == [])


def test_two_submits_of_a_run_at_the_same_time_queue_its_jobs_once(login, scenes):
    """The second one asks the queue when the first has filled it."""
    words = ("submit", "recipe=ar_tiny", "cluster=mine", f"data.input={scenes}", "--name", "twice")
    command = [sys.executable, "-m", "cosmos_hpc", *words, "cluster.sbatch=['--hold']"]
    environment = {**os.environ, **login.lab.environment}
    both = [
        subprocess.Popen(
            command, cwd=login.home, env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    names = [name.partition(".")[0] for name in login.queued("twice")]
    assert sorted(names) == sorted([*STAGES, "preprocess"]), said
    # The other found the jobs, or the lock.
    assert any("nothing is missing that is not in the queue" in text for text in said) or any(
        "is being worked on by" in text for text in said
    ), said
    assert login.command("cancel", "twice").code == 0


def test_a_cluster_without_job_arrays(tmp_path, scenes, lab):
    """Shards are prepared by jobs of their own, not more of them at a time than elsewhere."""
    with Lab(Path(tempfile.mkdtemp(prefix="lab-")), max_array_size=0) as without:
        login = Login(without, tmp_path / "login")
        words = (f"data.input={scenes}", "data.videos_per_shard=2")
        words += ("--stages", "download,preprocess")
        refused = login.command("submit", "recipe=ar_tiny", "cluster=mine", "--name=x", *words)
        assert refused.code == 2
        assert "MaxArraySize is 0; with 0 shards are prepared by jobs of their own" in refused.err
        taken = login.submit("single", *words, "cluster.max_array_size=0")
        assert re.search(r"preprocess  4 jobs, \d+ to \d+", taken.err), taken.err
        waits = [line for line in login.queue("%j %E") if line.startswith("preprocess.")]
        assert sum("afterany:" in line for line in waits) == 2
        state = login.wait("single", "preprocess", "done", "failed")
        assert (state["state"], state["done_tasks"]) == ("done", 4), login.explain("single")
        assert "max_array_size: 0" in login.command("cluster", "init", "proposed").out
    shutil.rmtree(without.folder, ignore_errors=True)


def test_a_job_whose_step_slurm_has_lost_can_be_seen_and_ended(login, tmp_path, scenes):
    """srun waits for ever, and nobody hears that the run is being cancelled."""
    python = executables(tmp_path / "bin", python="kill -9 $PPID") / "python"
    login.submit("lost", f"data.input={scenes}", "--stages=download", f"cluster.python={python}")
    (job,) = login.until(lambda: login.jobs("lost", "download"))
    login.until(lambda: "last progress" in login.command("status", "lost").out)
    words = [sys.executable, "-m", "cosmos_hpc", "cancel", "lost"]
    cancel = subprocess.Popen(
        words,
        cwd=login.home,
        env={**os.environ, **login.lab.environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = cancel.stderr.readline()
    assert f"waiting for download (job {job}, RUNNING) to stop at a safe point" in said
    assert "cancel --now kills what runs" in said
    shown = login.command("status", "lost").out
    assert "a stop was requested" in shown and "cancel lost --now kills its jobs" in shown
    assert cancel.poll() is None
    assert login.command("cancel", "lost", "--now").code == 0
    out, _ = cancel.communicate(timeout=60)
    assert cancel.returncode == 0
    assert "download    stopped" in out
    assert login.queued("lost") == []
