"""What ``runs rm`` and ``runs prune`` delete, and what they never touch."""

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_hpc.utils import files
from tests.conftest import cosmos_hpc
from tests.runs.written import checkpoint, worked_on, write_run


@pytest.fixture
def finished(tmp_path):
    """A run with all that can be pruned, beside things that look like it."""
    run = write_run(tmp_path / "runs/mine", steps=6, saved=[2, 4, 6], done=True)
    for shard in (0, 1):
        for ending in (".jsonl", ".ids", ".in_hand.json"):
            files.write_atomic(run.tokens.journal(shard).with_suffix(ending), "{}")
    files.write_atomic(run.tokens.path / "shards/.00001.tmp/tokens.bin", b"x" * 9000)
    files.write_atomic(run.path / "train/.metrics.jsonl.node7.123.tmp", "half")
    files.write_atomic(tmp_path / "elsewhere/.mine.tmp", "not of this run")
    (run.path / "logs").mkdir()
    (run.path / "logs/shared").symlink_to(tmp_path / "elsewhere")
    return run


def kept(run):
    return {str(path.relative_to(run.path)) for path in run.path.rglob("*")}


def test_prune_shows_asks_and_frees_what_is_not_needed(finished, tmp_path):
    before = kept(finished)
    asked = cosmos_hpc("runs", "prune", cwd=tmp_path)
    assert asked.code == 2
    assert "Nobody can be asked here; add --yes" in asked.err
    assert kept(finished) == before
    done = cosmos_hpc("runs", "prune", "--yes", cwd=tmp_path)
    assert done.code == 0, done.err
    gone = before - kept(finished)
    tops = {name for name in gone if str(Path(name).parent) not in gone}
    assert tops == {
        *(str(checkpoint(finished, n).relative_to(finished.path)) for n in (2, 4)),
        *(f"tokens/partial/00000.{ending}" for ending in ("jsonl", "ids", "in_hand.json")),
        "tokens/shards/.00001.tmp",
        "train/.metrics.jsonl.node7.123.tmp",
    }
    for name in tops:
        assert name in done.out
    assert "freed " in done.out
    # What stays, and how to do without it.
    assert "kept: 1 last checkpoint of finished trainings, 1" in done.out
    assert "optimizer state" in done.out and "cosmos-hpc convert" in done.out
    assert (tmp_path / "elsewhere/.mine.tmp").exists()
    assert "nothing to free" in cosmos_hpc("runs", "prune", cwd=tmp_path).out


def test_prune_leaves_what_works_or_is_not_done_or_is_read_by_others(finished, tmp_path):
    before = kept(finished)
    with worked_on(finished):
        shown = cosmos_hpc("runs", "prune", "--yes", cwd=tmp_path)
    assert "left alone: 1 run with work" in shown.out
    assert "kept: " not in shown.out
    assert kept(finished) - before == {".lock"}
    assert before <= kept(finished)
    with files.lock(finished.task_lock("train", 0)):  # a stage that was started by hand
        cosmos_hpc("runs", "prune", "--yes", cwd=tmp_path)
    assert kept(finished) - before == {".lock", "stages/locks", "stages/locks/train.0"}
    assert before <= kept(finished)
    # More steps are wanted: any checkpoint may be needed. Another run begins from one.
    open_run = write_run(tmp_path / "runs/open", "train.max_steps=9", steps=6, saved=[2, 4])
    base = checkpoint(finished, 2)
    write_run(tmp_path / "runs/reader", f"train.init_from={base}", steps=1)
    assert cosmos_hpc("runs", "prune", "--yes", cwd=tmp_path).code == 0
    assert checkpoint(open_run, 2).is_dir()
    assert checkpoint(open_run, 4).is_dir()
    assert base.is_dir()
    assert not checkpoint(finished, 4).exists()
    assert checkpoint(finished, 6).is_dir()


def test_prune_offers_nothing_of_a_run_that_cannot_be_read(finished, tmp_path):
    """Not even what does not depend on its recipe."""
    finished.recipe_file.write_text("name: [")
    shown = cosmos_hpc("runs", "prune", "--yes", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert "nothing to free" in shown.out and "kept: " not in shown.out
    assert (finished.path / "tokens/partial/00000.ids").exists()


def test_prune_stays_below_the_run(finished, tmp_path):
    """The folder of checkpoints was moved to another disk, and a link left."""
    moved = tmp_path / "scratch"
    finished.train.checkpoints.rename(moved)
    finished.train.checkpoints.symlink_to(moved)
    there = {path.name for path in moved.iterdir()}
    assert cosmos_hpc("runs", "prune", "--yes", cwd=tmp_path).code == 0
    assert {path.name for path in moved.iterdir()} == there
    assert not (finished.path / "tokens/partial/00000.ids").exists()


def test_rm_deletes_whole_runs_and_nothing_that_links_point_to(finished, tmp_path):
    other = write_run(tmp_path / "runs/other")
    far = write_run(tmp_path / "far/linked")
    (tmp_path / "runs/linked").symlink_to(far.path)
    with worked_on(other):
        refused = cosmos_hpc("runs", "rm", "mine", "other", "--yes", cwd=tmp_path)
    assert refused.code == 2
    assert "nothing was deleted: run other: process " in refused.err
    assert finished.recipe_file.exists()
    assert cosmos_hpc("runs", "rm", "mine", cwd=tmp_path).code == 2
    assert finished.recipe_file.exists()
    removed = cosmos_hpc("runs", "rm", "mine", "linked", "--yes", cwd=tmp_path)
    assert removed.code == 0, removed.err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
    assert not far.path.exists()
    assert (tmp_path / "elsewhere/.mine.tmp").exists()
    assert "no run 'mine'" in cosmos_hpc("runs", "rm", "mine", "--yes", cwd=tmp_path).err


def test_rm_keeps_what_a_working_run_begins_from(finished, tmp_path):
    words = f"train.init_from={checkpoint(finished, 6)}"
    reader = write_run(tmp_path / "runs/reader", words, steps=1)
    with worked_on(reader):
        refused = cosmos_hpc("runs", "rm", "mine", "--yes", cwd=tmp_path)
    assert refused.code == 2
    assert "run reader, which is not done, begins from a checkpoint of run mine" in refused.err
    shown = cosmos_hpc("runs", "rm", "mine", "--yes", cwd=tmp_path).out
    assert "run reader begins from a checkpoint of it" in shown


@pytest.mark.parametrize(("answer", "there"), [("n", True), ("", True), ("y", False)])
def test_a_person_is_asked(tmp_path, answer, there):
    run = write_run(tmp_path / "runs/mine")
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "cosmos_hpc", "runs", "rm", "mine"],
        cwd=tmp_path,
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert "delete 1 run? [y/N]" in done.stdout
    assert (done.returncode == 0) == (not there), done.stderr
    assert run.path.exists() == there


def test_a_run_whose_queue_cannot_be_asked_stays_until_a_person_deletes_it(tmp_path):
    profile = (
        "kind: slurm\nname: hpc\nruns: runs\nparallel: 4\ngpu_partition: gpu\ncpu_partition: cpu\n"
        "gpus_per_node: 8\n"
    )
    run = write_run(tmp_path / "runs/it's mine", cluster=profile)
    refused = cosmos_hpc("runs", "rm", run.path, "--yes", cwd=tmp_path, env={"PATH": "/nowhere"})
    assert refused.code == 2
    assert "squeue is not on the PATH" in refused.err
    assert refused.err.rstrip().endswith(f"or by hand: rm -r {shlex.quote(str(run.path))}")
    assert run.path.is_dir()
