"""Work that goes on by itself, and a look at it until it has ended."""

import os
import pty
import subprocess
import sys
import time

import pytest

import cosmos_hpc as ch
from cosmos_hpc.runs.sweeps import Membership, join_sweep
from cosmos_hpc.utils import files
from tests.conftest import cosmos_hpc
from tests.runs.written import worked_on, write_run

CODE = """
import sys
import cosmos_hpc as ch
changes = {"data.input": sys.argv[1], "train.seed": [1, 2]}
sweep = ch.submit("ar_tiny", overrides=changes, name="mine", stages=["download"], wait=False)
print(sweep[0].status().state)
"""


def test_a_submit_that_does_not_wait_outlives_its_process(tmp_path, scenes, monkeypatch):
    """With both runs of a sweep: the first is watched to its end, then the sweep to its own."""
    words = [sys.executable, "-c", CODE, str(scenes)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "running\n"), done.stderr
    watched = cosmos_hpc("status", "mine-seed1", "--watch", cwd=tmp_path)
    assert watched.code == 0, watched.err
    lines = watched.out.splitlines()
    assert lines[-1] == "mine-seed1: partial"
    assert any(line.split()[1:] == ["download", "done"] for line in lines), lines
    # The second began when the first had ended, and its turn was to come until then.
    both = cosmos_hpc("status", "mine", "--watch", cwd=tmp_path)
    said = tmp_path / "runs/mine-seed1/logs/submit.log"
    assert both.out.splitlines()[-1] == "mine: 2 partial", (both, said.read_text())
    assert (tmp_path / "runs/mine-seed2/tokenizer/done.json").exists(), said.read_text()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ch.RequestError, match="data.input is not set"):
        ch.submit("ar_tiny", wait=False)
    # What is done already is no error.
    request = {"overrides": {"data.input": scenes, "train.seed": 1}, "name": "mine-seed1"}
    again = ch.submit("ar_tiny", **request, stages=["download"], wait=False)
    assert again.status().state == "partial"


def test_a_terminal_is_drawn_over(tmp_path):
    run = write_run(tmp_path / "runs/mine", "train.max_steps=9", steps=3)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "cosmos_hpc", "status", "mine", "--watch"]
    seen = b""
    with worked_on(run):
        looking = subprocess.Popen(words, cwd=tmp_path, stdout=theirs, stderr=theirs)
        os.close(theirs)
        while seen.count(b"step 3/9") < 2:
            seen += os.read(ours, 4096)
    until = time.monotonic() + 60
    while looking.poll() is None and time.monotonic() < until:
        seen += os.read(ours, 4096)
        if b"mine: stopped" in seen:
            break
    assert looking.wait(60) == 0
    os.close(ours)
    assert b"F\x1b[Jmine: running" in seen
    assert b"F\x1b[Jmine: stopped" in seen


def test_a_sweep_is_watched_until_all_its_runs_have_ended(tmp_path):
    """Lines of a pipe: one for each run that has got on. The second run waits for its turn."""
    first, second = (
        write_run(tmp_path / f"runs/mine-seed{seed}", "train.max_steps=9", steps=steps)
        for seed, steps in ((1, 3), (2, 0))
    )
    for seed, run in enumerate((first, second), 1):
        join_sweep(run, Membership("mine", {"train.seed": seed}))
    words = [sys.executable, "-m", "cosmos_hpc", "status", "mine", "--watch"]
    with files.lock(second.turn):
        with worked_on(first):
            listed = ch.Sweep(tmp_path / "runs/mine")
            assert [run.state for run in listed.status()] == ["running", "queued"]
            looking = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            lines = [looking.stdout.readline().split(maxsplit=1)[1] for _ in range(2)]
        lines.append(looking.stdout.readline().split(maxsplit=1)[1])
        assert looking.poll() is None
    rest = looking.communicate(timeout=60)[0].splitlines()
    assert lines == [
        "mine-seed1  running  train: step 3, loss 4.7000\n",
        "mine-seed2  queued  download\n",
        "mine-seed1  stopped: step 3, loss 4.7000\n",
    ]
    assert rest[-1] == "mine: 2 stopped"
    assert looking.returncode == 0


def test_what_does_not_work_is_shown_once(tmp_path):
    write_run(tmp_path / "runs/mine", steps=3)
    shown = cosmos_hpc("status", "mine", "--watch", cwd=tmp_path)
    assert shown.out.splitlines()[-1] == "mine: stopped"
    assert "choose one" in cosmos_hpc("status", "mine", "--watch", "--json", cwd=tmp_path).err
