"""What is said of tasks that do not get on: from files of a run, and a queue that has them."""

import json
import os
import time

import pytest

from cosmos_hpc.backends.slurm.commands import SlurmJob
from cosmos_hpc.backends.slurm.queue import SlurmQueue, _stage_queue
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.data.shards import CONTENT, write_marker
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import write_specs
from cosmos_hpc.runs.status import read_state
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import dump_yaml

MINUTE = 60.0


class Place:
    """A run whose shards are prepared and whose training runs, as its files say."""

    def __init__(self, folder):
        self.run = RunFolder(folder / "run")
        recipe = load_recipe("ar_tiny", ["data.input=videos"])
        files.write_atomic(self.run.recipe_file, dump_yaml(recipe))
        files.write_json(self.run.info, {"id": "1", "created": "2026-01-01T00:00:00+00:00"})
        self.run.data.pin(str(folder), ["a.mp4", "b.mp4"], 2)
        write_specs(self.run, recipe)

    def attempt(self, stage, job, minutes, why=None, task=0, begun=True):
        """A job began to work on a task so many minutes ago, and perhaps ended."""
        row = {"job": job, "restart": 0, "node": "n1", "log": f"logs/{stage}/{job}.log", "why": ""}
        files.append_jsonl(
            self.run.attempts(stage, task), {"start": time.time() - minutes * MINUTE, **row}
        )
        if why:
            files.append_jsonl(self.run.attempts(stage, task), {"end": 0, **row, "why": why})
        stop = self.run.task_stop(stage, task)
        stop.parent.mkdir(parents=True, exist_ok=True)
        if begun:
            stop.with_name(f"{stop.name}.begun").touch()

    def touched(self, path, minutes, text="{}"):
        """A file that was written so many minutes ago."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.age(path, minutes)

    def age(self, path, minutes):
        os.utime(path, (time.time() - minutes * MINUTE,) * 2)

    def steps(self, *minutes):
        """Steps that ended so many minutes ago."""
        rows = [
            {"step": n + 1, "loss": 1.0, "seconds": 1.0, "time": time.time() - m * MINUTE}
            for n, m in enumerate(minutes)
        ]
        self.touched(self.run.train.metrics, 0, "".join(json.dumps(r) + "\n" for r in rows))

    def before_training(self):
        for marker in ("tokenizer/done.json", "tokens/done.json"):
            self.touched(self.run.path / marker, 90, '{"clips": 2, "videos": 2}')
        for shard in range(2):
            marker = {"shard": shard, "videos": 1, "clips": 1, "failed": 0, "padded": 0}
            sums = dict.fromkeys(CONTENT, "0" * 64)
            marker |= {"ids_per_clip": 1, "sha256": sums, "seconds": {}}
            self.run.tokens.shard(shard).mkdir(parents=True)
            write_marker(self.run.tokens.shard(shard), marker)
            self.age(self.run.tokens.shard(shard) / "done.json", 90)

    def status(self, stage, *jobs):
        """What status says of the stage, whose jobs are in the queue in these states."""
        found = [SlurmJob(job, f"{stage}.run.1", "", state, "None", "") for job, state in jobs]
        stages = {stage: _stage_queue(found, 2, before=[], said=set())} if found else {}
        queue = SlurmQueue(stages, run=self.run, jobs=[(stage, job) for job in found])
        state = read_state(self.run, queue)
        return next(s for s in state.stages if s.name == stage), state.render()


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_a_training_that_stands_still(place):
    place.before_training()
    place.attempt("train", "7", minutes=60)
    # A step a minute, one of two minutes beside a checkpoint.
    place.steps(18, 17, 15, 14)
    state, shown = place.status("train", ("7", "RUNNING"))
    assert state.state == "running"
    assert "last progress 14 min 00 s ago" in shown
    assert state.quiet == {}
    place.steps(48, 47, 45, 44)
    state, shown = place.status("train", ("7", "RUNNING"))
    assert state.quiet[0] == "quiet for 44 min 00 s, where 2 min 00 s is usual (job 7)"
    assert "cancel" in shown and "--now ends it" in shown
    # What was done in another job says nothing of this one, which has just begun.
    place.attempt("train", "8", minutes=1)
    state, shown = place.status("train", ("8", "RUNNING"))
    assert "last progress 1 min 00 s ago" in shown
    assert state.quiet == {}


def test_a_worker_that_never_began(place):
    """Such as that of a step whose slurmstepd was killed."""
    place.before_training()
    place.attempt("train", "7", minutes=14, begun=False)
    assert place.status("train", ("7", "RUNNING"))[0].quiet == {}
    place.run.attempts("train", 0).unlink()
    place.attempt("train", "7", minutes=26, begun=False)
    state, shown = place.status("train", ("7", "RUNNING"))
    assert state.quiet == {0: "its worker has not begun after 26 min 00 s (job 7)"}
    assert "last progress 26 min 00 s ago" in shown


def test_a_shard_that_stands_still_beside_one_that_does_not(place):
    place.touched(place.run.path / "tokenizer/done.json", 90)
    for task, ago in {0: 50, 1: 2}.items():
        place.attempt("preprocess", f"9_{task}", minutes=60, task=task)
        place.touched(place.run.tokens.journal(task), ago, '{"clip": 0}\n' * 40)
    state, shown = place.status("preprocess", ("9_0", "RUNNING"), ("9_1", "RUNNING"))
    assert list(state.quiet) == [0]
    assert "task 0: quiet for 50 min 00 s, where " in shown
    assert "(job 9_0)" in state.quiet[0]
    assert "last progress 2 min 00 s ago" in shown


def test_a_job_that_does_not_end_after_its_work(place):
    place.before_training()
    place.attempt("preprocess", "9_0", minutes=99, task=0)
    place.attempt("preprocess", "9_1", minutes=99, task=1, why="done")
    state, shown = place.status("preprocess", ("9_0", "RUNNING"), ("9_1", "RUNNING"))
    assert state.state == "done"
    assert state.quiet == {0: "done since 1 h 30 min, and its job has not ended (job 9_0)"}
    assert "in the queue: 2 RUNNING" in shown
    # One that may be about to end is no matter.
    place.age(place.run.tokens.shard(0) / "done.json", 0)
    state, shown = place.status("preprocess", ("9_0", "RUNNING"))
    assert state.quiet == {} and "in the queue" not in shown


def test_a_reason_is_shown_until_the_task_is_tried_anew(place):
    place.touched(place.run.path / "tokenizer/done.json", 90)
    for task in range(2):
        place.attempt("preprocess", f"9_{task}", minutes=60, task=task, why="failed")
        place.touched(place.run.error("preprocess", task), 60, "the disk was full")
    # Task 1 has failed in the array that is in the queue, and its job is about to end.
    for queue, failed in {
        (): [0, 1],
        (("12_0", "PENDING"), ("9_1", "COMPLETING")): [1],
        (("12_0", "RUNNING"), ("12_1", "RUNNING")): [],
    }.items():
        state, shown = place.status("preprocess", *queue)
        assert list(state.errors) == failed, queue
        assert ("disk was full" in shown) == bool(failed)


def test_a_stop_that_was_requested_is_shown(place):
    place.before_training()
    place.attempt("train", "7", minutes=60)
    place.touched(place.run.stop_request, 4, "")
    shown = place.status("train", ("7", "RUNNING"))[1]
    assert "a stop was requested 4 min 00 s ago: what runs ends at its next safe point" in shown
    assert "--now kills its jobs" in shown
    assert "a stop was requested" not in place.status("train")[1]
