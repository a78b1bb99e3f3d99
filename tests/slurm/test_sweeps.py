"""Sweeps on a real Slurm: jobs of later runs wait for the job that prepares the tokens."""

import subprocess

import pytest

from tests.conftest import SHELLCHECK
from tests.slurm.login import Login

RATES = "train.learning_rate=1e-4,3e-3"
FIRST, SECOND = "s-lr1e-4", "s-lr3e-3"
PREPARE = ("--stages", "download,preprocess,finalize")


@pytest.fixture
def login(lab, tmp_path):
    yield Login(lab, tmp_path)
    lab.clear()


def waits_for(login):
    """What jobs in the queue wait for, by their names without ids; job ids as these names."""
    lines = [line.split("|") for line in login.queue("%A|%j|%E")]
    names = {job: ".".join(name.split(".")[:2]) for job, name, _ in lines}
    found = {}
    for job, _, why in lines:
        ids = [part.partition(":")[2].partition("(")[0].rstrip("_*") for part in why.split(",")]
        found[names[job]] = {names[one] for one in ids if one in names}
    return found


def test_the_pasted_dry_run_links_the_tokens(login, scenes):
    words = (f"data.input={scenes}", "data.videos_per_shard=4", RATES, *PREPARE)
    words += ("cluster.gpu_partition=gpu,urgent",)
    text = login.submit("s", *words, "--dry-run").out
    checked = subprocess.run([SHELLCHECK, "-s", "bash", "-"], input=text, text=True)
    assert checked.returncode == 0
    assert "#SBATCH --partition=gpu,urgent" in text
    pasted = subprocess.run(
        ["bash"], input=text, env=login.lab.environment, capture_output=True, text=True
    )
    assert pasted.returncode == 0, pasted.stderr
    waits = waits_for(login)
    assert waits[f"download.{SECOND}"] == {f"finalize.{FIRST}"}
    assert waits[f"finalize.{SECOND}"] == {f"finalize.{FIRST}", f"download.{SECOND}"}
    assert f"preprocess.{SECOND}" not in waits
    # A submit finds these jobs, and adds none.
    again = login.submit("s", *words)
    assert again.err.count("nothing is missing that is not in the queue") == 2
    login.wait(SECOND, "finalize", "done", "failed")
    tokens = [login.run(name) / "tokens" / "tokens.bin" for name in (FIRST, SECOND)]
    assert tokens[0].samefile(tokens[1]), login.explain(SECOND)


def test_jobs_of_a_sweep_are_cancelled_and_submitted_again(login, scenes):
    """Jobs that do not begin today: nothing is carried out."""
    words = (f"data.input={scenes}", RATES, "cluster.sbatch=['--begin=now+1day']", *PREPARE)
    # The run that prepares leaves room for the jobs of the others, half of it at most.
    many = ("train.seed=1,2,3", "data.videos_per_shard=1", "cluster.max_submit=14", *PREPARE)
    text = login.submit("t", f"data.input={scenes}", *many, "--dry-run").out
    assert "#SBATCH --array=0-7" in text
    text = login.submit("t", f"data.input={scenes}", *many, "train.seed=1,2,3,4,5", "--dry-run").out
    assert "#SBATCH --array=0-5" in text
    # Room for the first run alone.
    full = ("submit", "recipe=ar_tiny", "cluster=mine", "--name", "s", *words)
    refused = login.command(*full, "data.videos_per_shard=8", "cluster.max_submit=4")
    assert refused.code == 2
    assert "1 of the 2 runs of the sweep were submitted before it" in refused.err
    assert "othing was submitted" not in refused.err
    again = login.command("retry", "s")
    assert f"run {SECOND}: you have " in again.err
    assert "1 of the 2 runs of the sweep were submitted before it" in again.err
    assert {name.split(".")[1] for name in login.queue("%j")} == {FIRST}
    submitted = login.command(*full, "data.videos_per_shard=8")
    assert submitted.code == 0, submitted.err
    before = waits_for(login)
    assert before[f"download.{SECOND}"] == {f"finalize.{FIRST}"}
    after = {stage["name"]: stage["after"] for stage in login.status(SECOND)["stages"]}
    assert after["download"] == f"finalize of run {FIRST}"
    assert after["finalize"] == f"download and finalize of run {FIRST}"
    # One run leaves the queue, and its siblings stay.
    assert login.command("cancel", SECOND).code == 0
    assert {name.split(".")[1] for name in login.queue("%j")} == {FIRST}
    assert login.command("retry", "s").code == 0
    assert waits_for(login) == before
    # Without the run that prepares, Slurm ends what waits for it, until all are submitted again.
    cancelled = login.command("cancel", FIRST)
    assert f"its tokens are missing to {SECOND}; cosmos-hpc retry" in cancelled.out
    login.until(lambda: login.queued(SECOND) == [])
    alone = login.command("retry", SECOND)
    assert (alone.code, f"takes over the tokens of run {FIRST}" in alone.err) == (2, True)
    assert login.command("retry", "s").code == 0
    assert waits_for(login) == before
    assert login.command("cancel", "s").code == 0
    assert [*login.queued(FIRST), *login.queued(SECOND)] == []
