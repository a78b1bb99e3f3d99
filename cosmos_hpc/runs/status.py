"""The state of a run, read from what is on the disk; never from a live process."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cosmos_hpc.backends.slurm.queue import SlurmView, StageJobs
from cosmos_hpc.config.clusters import SlurmCluster, read_cluster
from cosmos_hpc.data.shards import read_marker
from cosmos_hpc.runs.attempts import attempted_tasks
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import Stage, asked_for, missing_tasks, stages_of
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import duration


@dataclass(frozen=True)
class StageState:
    """How far a stage is.

    Attributes:
        name: of the stage.
        state: ``done``, ``running``, ``queued``, ``failed``, ``stopped`` (begun, not done, nobody
            works on it), ``waiting``, or ``unknown`` where Slurm does not answer.
        tasks, done_tasks: array tasks, and those whose results are whole.
        progress: how far the work is, in words.
        errors: reasons of failed tasks, by task.
        jobs: jobs and array tasks in Slurm's queue, by its states.
        waiting_for: why some are pending, and when the first may begin.
    """

    name: str
    state: str
    tasks: int
    done_tasks: int
    progress: str
    errors: dict[int, str]
    jobs: dict[str, int] = field(default_factory=dict)
    waiting_for: str = ""


@dataclass(frozen=True)
class RunState:
    """State of a run and its stages, the number of failed videos by kind, and what to do next."""

    name: str
    path: str
    state: str
    stages: list[StageState]
    failed_videos: dict[str, int]
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def render(self) -> str:
        """One screen for a person."""
        lines = [f"{self.name}: {self.state}  ({self.path})"]
        for stage in self.stages:
            tasks = f"{stage.done_tasks}/{stage.tasks} tasks  " if stage.tasks > 1 else ""
            lines.append(f"  {stage.name:<11} {stage.state:<8} {tasks}{stage.progress}".rstrip())
            lines += [f"    {line}" for line in _queue_lines(stage)]
            for task, reason in list(stage.errors.items())[:3]:
                which = f"task {task}: " if stage.tasks > 1 else ""
                lines.append(f"    {which}{reason}")
            if len(stage.errors) > 3:
                lines.append(f"    and {len(stage.errors) - 3} more failed tasks")
        run = RunFolder(self.path)
        if self.failed_videos:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.failed_videos.items())
            count = sum(self.failed_videos.values())
            videos = "video" if count == 1 else "videos"
            lines.append(f"  {count} {videos} failed ({kinds}), listed in {run.failed}")
        if self.state == "done":
            marker = files.read_json(run.marker("train"))
            lines.append(f"  checkpoint  {run.path / marker['checkpoint']}")
            lines.append(f"  loss curve  {run.loss_curve}")
        lines += [f"  {self.note}"] if self.note else []
        return "\n".join(lines)


def _queue_lines(stage: StageState) -> Iterator[str]:
    if stage.state == "done":
        return  # a job may still be ending
    if stage.jobs:
        yield "in the queue: " + ", ".join(f"{n} {state}" for state, n in stage.jobs.items())
    if stage.waiting_for:
        yield f"pending for {stage.waiting_for}"


def read_state(run: RunFolder) -> RunState:
    """Read the state of a run from the disk and, where it runs on a Slurm cluster, from Slurm."""
    recipe = run.recipe()
    view = SlurmView(run) if isinstance(read_cluster(run.cluster_file), SlurmCluster) else None
    driven = view is None and files.is_locked(run.lock)
    stages: list[StageState] = []
    reached = True
    for stage in stages_of(run, recipe):
        missing = missing_tasks(run, recipe, stage)
        # Before the videos are listed there is not even a task to miss.
        whole = not missing and stage.tasks > 0
        errors = _errors(run, stage, missing)
        jobs = view.stage(stage.name) if view else StageJobs()
        if view:
            errors = dict(sorted({**view.silent_deaths(stage, missing), **errors}.items()))
        if whole:
            state = "done"
        elif view and view.problem:
            state = "unknown"
        elif jobs.jobs:
            state = "running" if jobs.running else "queued"
        elif reached and (driven or _is_worked_on(run, stage, missing)):
            state = "running"
        elif errors:
            state = "failed"
        else:
            state = "stopped" if reached and _begun(run, stage) else "waiting"
        reached = reached and whole
        done = stage.tasks - len(missing)
        text = "" if state == "waiting" else stage_progress(run, stage)
        queue = (jobs.counts, jobs.waiting_for)
        stages.append(StageState(stage.name, state, stage.tasks, done, text, errors, *queue))
    kinds = Counter(row["error"] for row in files.read_jsonl(run.failed))
    failed = dict(kinds.most_common())
    overall = _overall(stages)
    if overall == "stopped":
        left = {stage.name for stage in stages if stage.state != "done"}
        if not run.begun():
            overall = "prepared"
        elif not left & {*asked_for(run)}:
            overall = "partial"
    note = _note(run, view, overall, stages)
    return RunState(run.name, str(run.path), overall, stages, failed, note)


def _note(run: RunFolder, view: SlurmView | None, overall: str, stages: list[StageState]) -> str:
    """What a person may want to do about a run."""
    if overall == "partial":
        following = next(stage.name for stage in stages if stage.state != "done")
        return (
            f"the stages that were asked for are done; cosmos-hpc retry {_named(run)} {following} "
            f"goes on with the others"
        )
    if view is None:
        return ""
    if view.problem:
        return f"what is in the queue is not known: {view.problem}"
    if view.stuck:
        return f"jobs that Slurm will not start are replaced by cosmos-hpc retry {_named(run)}"
    if overall == "done" or not view.queue_is_empty:
        return ""
    if not run.begun():
        return "nothing of it was submitted yet; the folder is only prepared"
    return f"nothing of it is in the queue; cosmos-hpc retry {_named(run)} goes on"


def _named(run: RunFolder) -> str:
    """How to name a run in a command that is typed here."""
    here = Path("runs", run.name)
    return run.name if here.is_dir() and here.samefile(run.path) else shlex.quote(str(run.path))


def _overall(stages: list[StageState]) -> str:
    states = [stage.state for stage in stages]
    for state in ("unknown", "running", "queued", "failed"):
        if state in states:
            return state
    return "done" if set(states) == {"done"} else "stopped"


def _errors(run: RunFolder, stage: Stage, missing: list[int]) -> dict[int, str]:
    errors = {}
    for task in missing:
        # A job that begins removes what its last attempt has left.
        with contextlib.suppress(FileNotFoundError):
            errors[task] = run.error(stage.name, task).read_text().strip()
    return errors


def _is_worked_on(run: RunFolder, stage: Stage, tasks: list[int]) -> bool:
    """Whether a worker is alive, perhaps one that a killed submit left behind."""
    return any(files.is_locked(run.task_lock(stage.name, task)) for task in tasks)


def _begun(run: RunFolder, stage: Stage) -> bool:
    if attempted_tasks(run, stage.name):
        return True
    return any(row["stage"] == stage.name for row in files.read_jsonl(run.log_index))


def stage_progress(run: RunFolder, stage: Stage) -> str:
    """How far a stage is, in words; empty where there is nothing to say."""
    if stage.name == "preprocess":
        return _preprocess_progress(run, stage)
    if stage.name == "finalize":
        marker = files.read_json(run.marker("finalize"))
        return f"{marker['clips']} clips of {marker['videos']} videos" if marker else ""
    if stage.name == "train":
        return _train_progress(run)
    return ""


def _preprocess_progress(run: RunFolder, stage: Stage) -> str:
    videos = failed = padded = 0
    for shard in range(stage.tasks):
        marker = read_marker(run.shard(shard))
        if marker:
            videos += marker.videos
            failed += marker.failed
            padded += marker.padded
        else:
            rows = files.read_jsonl(run.journal(shard))
            videos += sum(bool(row.get("last")) for row in rows)
            failed += sum("error" in row for row in rows)
            padded += sum(bool(row.get("padded")) for row in rows)
    notes = [f"{failed} failed"] if failed else []
    notes += [f"{padded} shorter than a clip, last frame repeated"] if padded else []
    return ", ".join([f"{videos}/{run.num_videos()} videos", *notes])


def _train_progress(run: RunFolder) -> str:
    rows = _last_rows(run.metrics)
    steps = [row for row in rows if "loss" in row]
    if not steps:
        return ""
    last = steps[-1]
    total = files.read_json(run.spec("train"))["recipe"]["train"]["max_steps"]
    text = f"step {last['step']}/{total}, loss {last['loss']:.3f}"
    validated = [row for row in rows if "validation_loss" in row]
    if validated:
        text += f", validation loss {validated[-1]['validation_loss']:.3f}"
        if last["step"] == total != validated[-1]["step"]:
            text += f" at step {validated[-1]['step']}"
    if last["step"] < total:
        # The median: a step beside a checkpoint takes longer.
        seconds = statistics.median(row["seconds"] for row in steps[-20:])
        left = duration((total - last["step"]) * seconds)
        text += f", {seconds:.2f} s/step, {left} left"
    return text


def _last_rows(path: Path, tail: int = 1 << 16) -> list[dict[str, Any]]:
    """The whole rows at the end of a file, which may be long."""
    if not path.exists():
        return []
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - tail))
        lines = f.read().splitlines(keepends=True)
    rows = []
    for line in lines:
        # Cut at the beginning of the tail, or being written: not whole.
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
