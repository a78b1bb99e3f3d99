"""Sweeps: runs of one request that share a preparation, from submitting to comparing them."""

import json
import os
import subprocess
import sys
import time

import pytest

import cosmos_hpc as ch
from cosmos_hpc.backends.base import Request
from cosmos_hpc.backends.kinds import read_cluster
from cosmos_hpc.backends.launch import start
from cosmos_hpc.backends.sweeps import leaving_room, one_after_another
from cosmos_hpc.run import retry_request
from cosmos_hpc.runs import cleaning
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.sweeps import Membership, join_sweep
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console
from tests.conftest import REQUEST, cosmos_hpc
from tests.runs.written import checkpoint, worked_on, write_run

RATES = "train.learning_rate=1e-4,3e-3"
FIRST, SECOND = "s-lr1e-4", "s-lr3e-3"


def stages_begun(run):
    rows = [json.loads(line) for line in run.log_index.read_text().splitlines()]
    return {row["stage"] for row in rows}


@pytest.mark.slow
def test_runs_of_a_sweep_share_tokens_and_stand_side_by_side(finished, tmp_path):
    """Two trainings from a given checkpoint, of which the second is cancelled before its turn."""
    whole = RunFolder(finished.path)
    source = files.read_json(whole.data.shards)["root"]
    words = ("submit", *REQUEST, f"data.input={source}", RATES, "--name", "s")
    words += (f"train.init_from={ch.Run(whole.path).checkpoint}", "train.max_steps=2")
    words += ("cluster.parallel=1", "--stages", "download,preprocess,finalize,train")
    first, second = (RunFolder(tmp_path / "runs" / name) for name in (FIRST, SECOND))
    with subprocess.Popen(
        [sys.executable, "-m", "cosmos_hpc", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as submit:
        deadline = time.monotonic() + 300
        while not first.tokens.path.joinpath("done.json").exists():
            assert time.monotonic() < deadline and submit.poll() is None
            time.sleep(0.2)
        # Its turn has not come; the other one goes on.
        cancelled = cosmos_hpc("cancel", SECOND, cwd=tmp_path)
        assert cancelled.code == 0
        assert f"run {SECOND} is kept from starting" in cancelled.err
        said = submit.communicate(timeout=600)[1]
    assert submit.returncode == 1
    assert f"run {SECOND}: cancelled before its turn" in said
    assert f"1 of the 2 runs of the sweep failed or were stopped: {SECOND}" in said
    assert not second.tokens.path.exists()
    # Whoever deletes the run with the tokens hears who needs them.
    with worked_on(second):
        refused = cosmos_hpc("runs", "rm", FIRST, "--yes", cwd=tmp_path)
    assert refused.code == 2
    assert f"run {SECOND}, which is not done, has yet to take over the tokens" in refused.err

    again = cosmos_hpc(*words, cwd=tmp_path)
    assert again.code == 0, again.err
    assert "preprocess  done before, 8/8 videos" in again.err
    assert stages_begun(first) >= {"preprocess", "finalize", "train"}
    assert stages_begun(second) == {"download", "finalize", "train"}
    for name in ("tokens.bin", "clips.jsonl"):
        assert (first.tokens.path / name).samefile(second.tokens.path / name)
    sweep = ch.Sweep(tmp_path / "runs/s")
    assert [run.folder.name for run in sweep] == [FIRST, SECOND]
    losses = [[loss for _, loss in run.losses()] for run in sweep]
    # The same weights and clips to begin with, and another step from there.
    assert losses[0][0] == losses[1][0] < 5
    assert losses[0][1] != losses[1][1]
    line = again.out.splitlines()[2].split()
    assert (line[:4], line[-1]) == ([SECOND, "done", "train", "2"], "0.003")
    page = sweep.report().path.read_text()
    assert f"{losses[1][1]:.4f}" in page
    assert page.count("<svg") == 2
    assert "learning_rate=0.003" in page

    # Any run may go, and what is spare in another is no token.
    assert cosmos_hpc("runs", "rm", FIRST, "--yes", cwd=tmp_path).code == 0
    offered = cleaning.spare([second], cleaning.last_checkpoints([second]))
    assert not [r for r in offered if r.path.is_relative_to(second.tokens.path)]
    state = ch.Run(second.path).status()
    assert {stage.name: stage.state for stage in state.stages}["finalize"] == "done"
    assert second.tokens.path.joinpath("tokens.bin").stat().st_size > 0


def test_a_dry_run_shows_all_runs(tmp_path, scenes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"train": {"learning_rate": [1e-4, 3e-3]}, "data.input": scenes}
    sweep = ch.submit("ar_tiny", overrides=given, name="s", dry_run=True)
    assert repr(sweep) == "Sweep('s', 2 runs)"
    tasks = [line.split()[-2:] for line in sweep.dry_run.splitlines() if "/stages/" in line]
    stages = [(path.split("/")[-3], path.split("/")[-1][:-5]) for path, _ in tasks]
    assert (FIRST, "preprocess") in stages
    assert (SECOND, "finalize") in stages
    assert (SECOND, "preprocess") not in stages
    # A list that is one value is one run.
    one = {"data.input": scenes, "train.fusions": ["rotary", "norms"]}
    assert isinstance(ch.submit("ar_tiny", overrides=one, dry_run=True), ch.Run)
    # What one of them is refused for, none is begun for.
    (tmp_path / "runs/none-lr3e-3/mine").mkdir(parents=True)
    with pytest.raises(ch.RequestError, match="none-lr3e-3 exists and is not a run"):
        ch.submit("ar_tiny", overrides=given, name="none")
    assert [path.name for path in tmp_path.glob("runs/none*")] == ["none-lr3e-3"]
    with pytest.raises(ch.RequestError, match=r"train\.learning_rate has 2 values: give one"):
        ch.plan("ar_tiny", overrides=given)
    with pytest.raises(ch.RequestError, match="there is a run s-lr1e-4 in runs"):
        ch.submit("ar_tiny", overrides=given, name=FIRST, dry_run=True)


@pytest.fixture
def written(tmp_path, monkeypatch, scenes):
    """The folders of a sweep of which the second run has still to take over the tokens."""
    monkeypatch.chdir(tmp_path)
    runs = []
    for name, rate, steps in ((FIRST, 1e-4, 4), (SECOND, 3e-3, 0)):
        changes = (f"train.learning_rate={rate}", f"data.input={scenes}")
        run = write_run(tmp_path / "runs" / name, *changes, steps=steps)
        tokens = FIRST if name == SECOND else None
        join_sweep(run, Membership("s", {"train.learning_rate": rate}, tokens))
        runs.append(run)
    write_run(tmp_path / "runs/other", steps=1)
    # What takes space of the tokens is one file, with a name in each run.
    own, linked = (run.tokens.path / "tokens.bin" for run in runs)
    files.write_atomic(own, os.urandom(10_000_000))
    linked.parent.mkdir(exist_ok=True)
    linked.hardlink_to(own)
    return runs


def test_a_sweep_is_seen_by_its_name(written, tmp_path):
    rows = json.loads(cosmos_hpc("status", "s", "--json", cwd=tmp_path).out)
    assert [(row["sweep"], row["swept"], row["step"]) for row in rows] == [
        ("s", {"train.learning_rate": 1e-4}, 4),
        ("s", {"train.learning_rate": 3e-3}, None),
    ]
    shared = (written[0].tokens.path / "tokens.bin").stat().st_blocks * 512
    assert [row["shared_bytes"] for row in rows] == [0, shared]
    assert rows[1]["bytes"] > shared
    listed = cosmos_hpc("runs", cwd=tmp_path).out.splitlines()
    assert "3 runs, 10 MB" in listed[4]
    assert listed[0].split()[-1] == "learning_rate"
    assert [line.split()[-1] for line in listed[1:4]] == ["-", "0.0001", "0.003"]
    # A page before all have trained; the path of a sweep is that of its runs without the values.
    page = ch.Sweep(tmp_path / "runs/s").report().path
    assert page == tmp_path / "runs/s-sweep.html"
    text = page.read_text()
    assert "<svg" in text
    assert ">learning_rate</th>" in text
    refused = cosmos_hpc("retry", "s", "train", cwd=tmp_path)
    assert (refused.code, "retry train of one of its runs" in refused.err) == (2, True)
    with pytest.raises(ch.RequestError, match="no sweep 't'"):
        ch.Sweep("t")
    removed = cosmos_hpc("runs", "rm", "s", "--yes", cwd=tmp_path)
    assert (removed.code, "frees 10 MB\n" in removed.out) == (0, True)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_a_cancel_before_the_turn_of_a_run_and_after_all(written, tmp_path):
    first, second = written
    shown, begun = [], []
    work = [
        lambda: shown.append(cosmos_hpc("cancel", SECOND, cwd=tmp_path)),
        lambda: begun.append(second),
    ]
    with pytest.raises(ch.WorkError, match=f"failed or were stopped: {SECOND}"):
        one_after_another([first, second], work, Console())
    assert f"run {SECOND} is kept from starting" in shown[0].err
    assert "nothing works on" not in shown[0].out
    assert not begun
    # Nothing is left that would stop workers which somebody starts by hand.
    assert "nothing works on s" in cosmos_hpc("cancel", "s", cwd=tmp_path).out
    assert not first.stop_request.exists()
    assert not second.stop_request.exists()


def test_a_retry_leaves_room_for_the_jobs_that_later_runs_lack(written):
    second = written[1]
    assert [r.spare_jobs for r in leaving_room([*map(retry_request, written)])] == [1, 0]
    recorded = {"steps": 4, "checkpoint": str(checkpoint(second, 4).relative_to(second.path))}
    checkpoint(second, 4).mkdir(parents=True)
    files.write_json(second.train.done, recorded)
    assert leaving_room([*map(retry_request, written)])[0].spare_jobs == 0


def test_a_run_whose_source_is_gone_prepares_its_own(written, tmp_path):
    first, second = written
    second.data.take_over(first.data)
    cluster = read_cluster(second.cluster_file)
    asked = ["download", "finalize", "train"]
    request = Request(second, second.recipe(), asked, dry_run=True)
    assert "/preprocess.json" not in start(request, cluster, Console())
    removed = cosmos_hpc("runs", "rm", FIRST, "--yes", cwd=tmp_path)
    assert f"run {SECOND} has yet to take over the tokens of it" in removed.out
    assert "; 10 MB are of files that other folders have as well\n" in removed.out
    assert not first.path.exists()
    assert "/preprocess.json" in start(request, cluster, Console())
