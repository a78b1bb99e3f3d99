"""Jobs that are warned, preempted, killed or lose their node, on a real Slurm."""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.slurm.login import Login

PREPARE = ("--stages", "download,preprocess,finalize")
#: One clip at a time, so that there are many moments to be interrupted at.
SLOWLY = ("data.batch_size=1", "data.decoders=2", "data.videos_per_shard=60", "cluster.parallel=2")
TOKENS = ("tokens.bin", "tokens.idx")


@pytest.fixture(scope="module")
def login(lab, tmp_path_factory):
    return Login(lab, tmp_path_factory.mktemp("login"))


@pytest.fixture(scope="module")
def videos(scenes, tmp_path_factory):
    """120 videos, of eight different contents."""
    folder = tmp_path_factory.mktemp("many")
    contents = sorted(scenes.iterdir())
    for number in range(120):
        os.link(contents[number % len(contents)], folder / f"{number:03d}.mp4")
    return folder


@pytest.fixture(scope="module")
def undisturbed(login, videos):
    """Digests of the tokens of a run that nothing happened to."""
    login.submit("undisturbed", f"data.input={videos}", *SLOWLY, *PREPARE)
    login.wait("undisturbed", "finalize", "done", "failed")
    return digests(login, "undisturbed")


def digests(login, name):
    assert login.stage(name, "finalize")["state"] == "done", login.explain(name)
    tokens = login.run(name) / "tokens"
    return [hashlib.sha256((tokens / part).read_bytes()).hexdigest() for part in TOKENS]


def notes(login, name, stage, task=0):
    path = login.run(name) / "stages" / "attempts" / f"{stage}.{task}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def worker(login, name, stage, task=0):
    """Process of the worker of a task."""
    spec = str(login.run(name) / "stages" / f"{stage}.json")
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")[:-1]
        except (OSError, UnicodeDecodeError):
            continue
        if words[-2:] == [spec, str(task)] and "srun" not in words[0]:
            return int(folder.name)
    return None


def hold(login, name, *shards):
    """Stop the workers of shards, each in the midst of its own; returns their processes.

    They would be done soon; to what is sent to them meanwhile they listen when they go on.
    """
    held = {}
    deadline = time.monotonic() + 300
    while len(held) < len(shards):
        assert time.monotonic() < deadline, login.explain(name)
        time.sleep(0.01)
        for shard in {*shards} - {*held}:
            journal = login.run(name) / "tokens" / "partial" / f"{shard:05d}.jsonl"
            if journal.exists() and journal.stat().st_size:
                held[shard] = worker(login, name, "preprocess", shard)
                os.kill(held[shard], signal.SIGSTOP)
    return [held[shard] for shard in shards]


def start(login, name, videos, *words):
    login.submit(name, f"data.input={videos}", *SLOWLY, *PREPARE, *words)


@pytest.mark.slow
def test_a_warning_stops_a_shard_after_its_clip_and_it_goes_on(login, videos, undisturbed):
    start(login, "warned", videos)
    workers = hold(login, "warned", 0, 1)
    for job in login.jobs("warned", "preprocess"):
        login.lab.run("scancel", "--signal=USR1", "--batch", job)
    stops = [login.run("warned") / "stages" / "stops" / f"preprocess.{task}" for task in range(2)]
    login.until(lambda: all(stop.exists() for stop in stops))
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    login.wait("warned", "finalize", "done", "failed")
    assert digests(login, "warned") == undisturbed
    for task in range(2):
        whys = [note["why"] for note in notes(login, "warned", "preprocess", task)]
        assert whys == ["", "stopped", "", "done"]
        log = login.command("logs", "warned", f"preprocess.{task}").out
        # One file across the requeue; the second attempt keeps what the first has done.
        assert "stopped after" in log
        assert "of 60 videos were finished before" in log


@pytest.mark.slow
def test_a_time_limit_is_survived(login, videos, undisturbed):
    """A real one: Slurm warns 30 to 90 seconds before the two minutes are over."""
    start(login, "limited", videos, "cluster.time.preprocess=00:02:00", "cluster.grace_seconds=45")
    # A worker that would be done within a minute is made slow.
    (pid,) = hold(login, "limited", 0)
    stop = login.run("limited") / "stages" / "stops" / "preprocess.0"
    login.until(stop.exists)
    os.kill(pid, signal.SIGCONT)
    login.wait("limited", "finalize", "done", "failed")
    assert digests(login, "limited") == undisturbed
    whys = [n["why"] for n in notes(login, "limited", "preprocess", 0)]
    assert whys[:2] == ["", "stopped"]
    # Where it is slow it is warned again.
    assert whys[-1] == "done" and {*whys[2:-1]} <= {"", "stopped"}


@pytest.mark.slow
def test_preempted_by_a_partition_of_higher_priority(login, videos, undisturbed):
    start(login, "preempted", videos)
    hold(login, "preempted", 0)  # Slurm lets it go on with its signal
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive"]
    job = login.lab.run(*urgent, "--wrap", "sleep 8").strip()
    login.until(lambda: login.queue("%T", f"--jobs={job}") == ["RUNNING"])
    assert login.jobs("preempted", "preprocess") == []
    login.wait("preempted", "finalize", "done", "failed")
    assert digests(login, "preempted") == undisturbed
    assert any(
        n["restart"] for task in range(2) for n in notes(login, "preempted", "preprocess", task)
    )


@pytest.mark.slow
def test_a_node_goes_down(login, videos, undisturbed):
    start(login, "node-down", videos)
    hold(login, "node-down", 0)
    login.lab.run("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    try:
        login.wait("node-down", "finalize", "done", "failed")
    finally:
        login.lab.run("scontrol", "update", "nodename=n1", "state=resume")
    assert digests(login, "node-down") == undisturbed
    log = login.command("logs", "node-down", "preprocess.0").out
    assert "array task 0, restart 0, on n1" in log
    assert re.search("array task 0, restart 1, on n[23]", log), log


@pytest.mark.slow
def test_killed_workers_are_tried_again_and_not_for_ever(login, videos, undisturbed):
    start(login, "killed", videos, "cluster.retries=1")
    for _ in range(2):
        pid = login.until(lambda: worker(login, "killed", "preprocess", 0))
        os.kill(pid, signal.SIGKILL)
        login.until(lambda pid=pid: not Path(f"/proc/{pid}").exists())
    state = login.wait("killed", "preprocess", "failed")
    assert [n["why"] for n in notes(login, "killed", "preprocess", 0)] == [
        "",
        "killed",
        "",
        "failed",
    ]
    assert "ended 2 times without a reason, perhaps out of memory" in state["errors"]["0"]
    login.until(lambda: login.queued("killed") == [])
    # Only the failed shard is tried again, and what waited for it.
    outcome = login.command("retry", "killed")
    assert outcome.code == 0, outcome.err
    assert "preprocess  job" in outcome.err and "1 array tasks" in outcome.err
    login.wait("killed", "finalize", "done", "failed")
    assert digests(login, "killed") == undisturbed
    assert len(notes(login, "killed", "preprocess", 1)) == 2
    login.command("cancel", "killed")


@pytest.mark.slow
def test_scancel_is_not_undone_and_retry_goes_on(login, videos, undisturbed):
    start(login, "scancelled", videos)
    hold(login, "scancelled", 0)
    login.lab.run("scancel", "--user=root")
    login.until(lambda: login.queue() == [])
    state = login.wait("scancelled", "preprocess", "stopped", "failed")
    time.sleep(7)  # longer than a requeue takes
    assert login.queue() == []
    assert state["done_tasks"] < 2
    assert login.command("retry", "scancelled", "preprocess.0").code == 0
    assert len([job for job in login.queued("scancelled") if job.startswith("preprocess.")]) == 1
    assert login.command("retry", "scancelled").code == 0
    login.wait("scancelled", "finalize", "done", "failed")
    assert digests(login, "scancelled") == undisturbed
    login.command("cancel", "scancelled")


@pytest.mark.slow
def test_cancel_stops_at_a_safe_point_and_submit_goes_on(login, videos, undisturbed):
    start(login, "cancelled", videos)
    journal = login.run("cancelled") / "tokens" / "partial" / "00000.jsonl"
    login.until(lambda: journal.exists() and journal.stat().st_size)
    outcome = login.command("cancel", "cancelled")
    assert outcome.code == 0, outcome.err
    assert login.queue() == []
    assert login.status("cancelled")["state"] == "stopped"
    whys = {
        notes(login, "cancelled", "preprocess", t)[-1]["why"]
        for t in range(2)
        if notes(login, "cancelled", "preprocess", t)
    }
    assert whys <= {"cancelled", "done"}
    assert login.command("cancel", "cancelled").out.startswith("nothing works on")
    start(login, "cancelled", videos)
    login.wait("cancelled", "finalize", "done", "failed")
    assert digests(login, "cancelled") == undisturbed


@pytest.mark.slow
def test_anything_at_random_moments(login, videos, undisturbed):
    chance = random.Random(11)
    start(login, "chaos", videos, "cluster.retries=50", "cluster.requeues=50")
    deadline = time.monotonic() + 600
    happened = []
    while login.stage("chaos", "finalize")["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline, login.explain("chaos")
        time.sleep(chance.uniform(0.5, 3))
        if len(happened) >= 8:
            continue
        task = chance.randrange(2)
        pid = worker(login, "chaos", "preprocess", task)
        running = [j for j in login.jobs("chaos", "preprocess") if j.endswith(f"_{task}")]
        if not pid or not running:
            continue
        what = chance.choice(["kill", "term", "warn", "requeue"])
        happened.append(what)
        if what in ("kill", "term"):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGTERM)
        elif what == "warn":
            login.lab.run("scancel", "--signal=USR1", "--batch", running[0], check=False)
        else:
            login.lab.run("scontrol", "requeue", running[0], check=False)
    assert happened
    assert digests(login, "chaos") == undisturbed


def kill_a_rank(login, name):
    """Whether a rank, or a process under it, could be killed without a reason."""
    command = ["pgrep", "-f", f"{login.run(name)}/stages/train.json 0$"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.split()
    with contextlib.suppress(ProcessLookupError, IndexError):
        os.kill(int(found[-1]), signal.SIGKILL)
        return True
    return False


@pytest.mark.slow
def test_a_training_goes_on_after_each_kind_of_interruption(login, scenes):
    """It ends at its step, with every step once and finite losses."""
    words = ("train.max_steps=20", "train.save_every=4", "train.validate_every=20", "train.gpus=2")
    words += ("train.global_batch_size=4", "train.micro_batch_size=2")
    login.submit("training", f"data.input={scenes}", *words)
    metrics = login.run("training") / "train" / "metrics.jsonl"

    def steps():
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return [row for row in map(json.loads, lines) if "loss" in row]

    login.until(lambda: len(steps()) >= 5, 600)
    job = login.jobs("training", "train")[0]
    login.lab.run("scancel", "--signal=USR1", "--batch", job)  # as before the time limit
    login.until(
        lambda: (
            [n["why"] for n in notes(login, "training", "train")][-1:] == [""]
            and len(notes(login, "training", "train")) == 3
        )
    )
    begun = len(steps())
    assert begun >= 5
    login.until(lambda: len(steps()) > begun + 5)
    login.until(lambda: kill_a_rank(login, "training"))
    assert login.wait("training", "train", "done", "failed")["state"] == "done", login.explain(
        "training"
    )
    assert [row["step"] for row in steps()] == list(range(1, 21))
    assert all(0 < row["loss"] < 20 for row in steps())
    expected = ["", "stopped", "", "killed", "", "done"]
    login.until(lambda: len(notes(login, "training", "train")) == len(expected))
    assert [n["why"] for n in notes(login, "training", "train")] == expected
