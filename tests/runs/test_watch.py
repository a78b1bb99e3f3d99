"""Work that goes on by itself, and a look at it until it has ended."""

import os
import pty
import subprocess
import sys
import time

import pytest

import cosmos_hpc as ch
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
    """With both runs of a sweep, of which the first is watched to its end."""
    words = [sys.executable, "-c", CODE, str(scenes)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "running\n"), done.stderr
    watched = cosmos_hpc("status", "mine-seed1", "--watch", cwd=tmp_path)
    assert watched.code == 0, watched.err
    lines = watched.out.splitlines()
    assert lines[-1] == "mine-seed1: partial"
    assert any(line.split()[1:] == ["download", "done"] for line in lines), lines
    monkeypatch.chdir(tmp_path)
    said = tmp_path / "runs/mine-seed1/logs/submit.log"
    until = time.monotonic() + 120
    while said.read_text().count("download    done") < 2 and time.monotonic() < until:
        time.sleep(0.2)
    assert (tmp_path / "runs/mine-seed2/tokenizer/done.json").exists(), said.read_text()
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


def test_what_does_not_work_is_shown_once(tmp_path):
    write_run(tmp_path / "runs/mine", steps=3)
    shown = cosmos_hpc("status", "mine", "--watch", cwd=tmp_path)
    assert shown.out.splitlines()[-1] == "mine: stopped"
    assert "choose one" in cosmos_hpc("status", "mine", "--watch", "--json", cwd=tmp_path).err
