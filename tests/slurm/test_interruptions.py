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

from tests.conftest import SMALL_CLIPS
from tests.slurm.login import Login

PREPARE = ("--stages", "download,preprocess,finalize")
IN_A_SHARD = 50
#: One clip at a time, so that there are many moments to be interrupted at.
SLOWLY = ("data.batch_size=1", "data.decoders=2", "cluster.parallel=2")
SLOWLY += (f"data.videos_per_shard={IN_A_SHARD}",)
TOKENS = ("tokens.bin", "tokens.idx")


@pytest.fixture(scope="module")
def login(lab, tmp_path_factory):
    return Login(lab, tmp_path_factory.mktemp("login"))


@pytest.fixture(scope="module")
def videos(scenes, tmp_path_factory):
    """Videos of two shards, of eight different contents."""
    folder = tmp_path_factory.mktemp("many")
    contents = sorted(scenes.iterdir())
    for number in range(2 * IN_A_SHARD):
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

    They would be done soon; to what is sent to them meanwhile they listen when they go on. What
    was done before the call does not count: it may be of a worker that has ended.
    """
    partial, held = login.run(name) / "tokens" / "partial", {}
    journals = {shard: partial / f"{shard:05d}.jsonl" for shard in shards}
    before = {shard: size(journal) for shard, journal in journals.items()}
    deadline = time.monotonic() + 300
    while len(held) < len(shards):
        assert time.monotonic() < deadline, login.explain(name)
        time.sleep(0.01)
        for shard in {*shards} - {*held}:
            if size(journals[shard]) > before[shard]:
                held[shard] = worker(login, name, "preprocess", shard)
                os.kill(held[shard], signal.SIGSTOP)
    return [held[shard] for shard in shards]


def size(path):
    return path.stat().st_size if path.exists() else 0


def start(login, name, videos, *words):
    login.submit(name, f"data.input={videos}", *SLOWLY, *PREPARE, *words)


@pytest.mark.slow
def test_warned_preempted_and_without_its_node_a_run_goes_on(login, videos, undisturbed):
    """One run: each attempt keeps what those before it have done."""
    name = "unlucky"
    start(login, name, videos)
    # Warned, a worker ends after its clip.
    workers = hold(login, name, 0, 1)
    for job in login.jobs(name, "preprocess"):
        login.lab.run("scancel", "--signal=USR1", "--batch", job)
    stops = [login.run(name) / "stages" / "stops" / f"preprocess.{task}" for task in range(2)]
    login.until(lambda: all(stop.exists() for stop in stops))
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    login.until(lambda: all(len(notes(login, name, "preprocess", t)) > 1 for t in range(2)))
    # Held again at once: the other may start so much later that this one would be done.
    workers = hold(login, name, 0, 1)
    for task in range(2):
        whys = [note["why"] for note in notes(login, name, "preprocess", task)]
        assert whys == ["", "stopped", ""]
    os.kill(workers[1], signal.SIGCONT)
    # A partition of higher priority takes all nodes; Slurm lets the worker go on with its signal.
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive"]
    job = login.lab.run(*urgent, "--wrap", "sleep 3").strip()
    login.until(lambda: login.queue("%T", f"--jobs={job}") == ["RUNNING"])
    assert login.jobs(name, "preprocess") == []
    # A node goes down.
    hold(login, name, 0)
    node = notes(login, name, "preprocess", 0)[-1]["node"]
    login.lab.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        login.wait(name, "finalize", "done", "failed")
    finally:
        login.lab.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert digests(login, name) == undisturbed
    attempts = [note for note in notes(login, name, "preprocess", 0) if "start" in note]
    assert [note["restart"] for note in attempts] == [0, 1, 2, 3]
    assert attempts[-1]["node"] != node
    # One file across the requeues.
    log = login.command("logs", name, "preprocess.0").out
    assert f"array task 0, restart 2, on {node}" in log
    assert re.search("array task 0, restart 3, on n[123]", log), log
    assert log.count(f"of {IN_A_SHARD} videos were finished before") == 3
    assert "stopped after" in login.command("logs", name, "preprocess.1").out


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
    assert "preprocess  job" in outcome.err and "1 array task" in outcome.err
    login.wait("killed", "finalize", "done", "failed")
    assert digests(login, "killed") == undisturbed
    assert len(notes(login, "killed", "preprocess", 1)) == 2
    login.command("cancel", "killed")


@pytest.mark.slow
def test_what_a_person_cancels_stays_so_until_it_is_asked_for(login, videos, undisturbed):
    """With Slurm's command, which is not undone, and with ours, which stops at a safe point."""
    name = "cancelled"
    start(login, name, videos)
    hold(login, name, 0)
    login.lab.run("scancel", "--user=root")
    login.until(lambda: login.queue() == [])
    state = login.wait(name, "preprocess", "stopped", "failed")
    time.sleep(7)  # longer than a requeue takes
    assert login.queued(name) == []
    assert state["done_tasks"] < 2
    assert login.command("retry", name, "preprocess.0").code == 0
    assert len([job for job in login.queued(name) if job.startswith("preprocess.")]) == 1
    assert login.command("retry", name).code == 0
    (pid,) = hold(login, name, 0)
    os.kill(pid, signal.SIGCONT)
    outcome = login.command("cancel", name)
    assert outcome.code == 0, outcome.err
    assert login.queued(name) == []
    assert login.status(name)["state"] == "stopped"
    assert notes(login, name, "preprocess")[-1]["why"] in ("cancelled", "done")
    assert login.command("cancel", name).out.startswith("nothing works on")
    start(login, name, videos)
    login.wait(name, "finalize", "done", "failed")
    assert digests(login, name) == undisturbed


@pytest.mark.slow
def test_anything_at_random_moments(login, videos, undisturbed):
    chance = random.Random(11)
    start(login, "chaos", videos, "cluster.retries=50", "cluster.requeues=50")
    deadline = time.monotonic() + 600
    happened = []
    while login.stage("chaos", "finalize")["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline, login.explain("chaos")
        time.sleep(chance.uniform(0.5, 3))
        if len(happened) >= 5:
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
    words += ("train.global_batch_size=4", "train.micro_batch_size=2", "cluster.parallel=1")
    words += ("generate.tasks=0", *SMALL_CLIPS)
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
