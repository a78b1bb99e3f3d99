"""The state of a run, read from what is on the disk; never from a live process."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmos_hpc import files
from cosmos_hpc.progress import duration
from cosmos_hpc.runs import RunFolder
from cosmos_hpc.stages import Stage, missing_tasks, stages_of


@dataclass(frozen=True)
class StageState:
    """How far a stage is.

    Attributes:
        name: of the stage.
        state: ``done``, ``running``, ``failed``, ``stopped`` (begun, not done, nobody works on it)
            or ``waiting``.
        tasks, done_tasks: array tasks, and those whose results are whole.
        progress: how far the work is, in words.
        errors: reasons of failed tasks, by task.
    """

    name: str
    state: str
    tasks: int
    done_tasks: int
    progress: str
    errors: dict[int, str]


@dataclass(frozen=True)
class RunState:
    """State of a run and its stages, and what it has produced."""

    name: str
    path: str
    state: str
    stages: list[StageState]
    failed_videos: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def render(self) -> str:
        """One screen for a person."""
        lines = [f"{self.name}: {self.state}  ({self.path})"]
        for stage in self.stages:
            tasks = f"{stage.done_tasks}/{stage.tasks} tasks  " if stage.tasks > 1 else ""
            lines.append(f"  {stage.name:<11} {stage.state:<8} {tasks}{stage.progress}".rstrip())
            for task, reason in list(stage.errors.items())[:3]:
                which = f"task {task}: " if stage.tasks > 1 else ""
                lines.append(f"    {which}{reason}")
            if len(stage.errors) > 3:
                lines.append(f"    and {len(stage.errors) - 3} more failed tasks")
        run = RunFolder(self.path)
        if self.failed_videos:
            lines.append(f"  {self.failed_videos} videos failed, listed in {run.failed}")
        if self.state == "done":
            marker = files.read_json(run.marker("train"))
            lines.append(f"  checkpoint  {run.path / marker['checkpoint']}")
            lines.append(f"  loss curve  {run.loss_curve}")
        return "\n".join(lines)


def read_state(run: RunFolder) -> RunState:
    """Read the state of a run."""
    recipe = run.recipe()
    driven = files.is_locked(run.lock)
    stages: list[StageState] = []
    reached = True
    for stage in stages_of(run, recipe):
        missing = missing_tasks(run, recipe, stage)
        # Before the videos are listed there is not even a task to miss.
        whole = not missing and stage.tasks > 0
        errors = _errors(run, stage, missing)
        if whole:
            state = "done"
        elif reached and driven:
            state = "running"
        elif errors:
            state = "failed"
        else:
            state = "stopped" if reached and _begun(run, stage) else "waiting"
        reached = reached and whole
        done = stage.tasks - len(missing)
        text = "" if state == "waiting" else stage_progress(run, stage)
        stages.append(StageState(stage.name, state, stage.tasks, done, text, errors))
    return RunState(run.name, str(run.path), _overall(stages), stages, _failed_videos(run, stages))


def _overall(stages: list[StageState]) -> str:
    states = [stage.state for stage in stages]
    for state in ("failed", "running"):
        if state in states:
            return state
    return "done" if set(states) == {"done"} else "stopped"


def _errors(run: RunFolder, stage: Stage, missing: list[int]) -> dict[int, str]:
    errors = {}
    for task in missing:
        path = run.error(stage.name, task)
        if path.exists():
            errors[task] = path.read_text().strip()
    return errors


def _begun(run: RunFolder, stage: Stage) -> bool:
    return any(row["stage"] == stage.name for row in files.read_jsonl(run.log_index))


def _failed_videos(run: RunFolder, stages: list[StageState]) -> int:
    return len(files.read_jsonl(run.failed)) if stages[1].state == "done" else 0


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
        marker = files.read_json(run.marker("preprocess", shard))
        if marker:
            videos += marker["videos"]
            failed += marker["failed"]
            padded += marker["padded"]
        else:
            rows = files.read_jsonl(run.journal(shard))
            videos += len(rows)
            failed += sum("error" in row for row in rows)
            padded += sum(bool(row.get("padded")) for row in rows)
    pinned = files.read_json(run.shards)
    total = pinned["bounds"][-1] if pinned else 0
    notes = [f"{failed} failed"] if failed else []
    notes += [f"{padded} shorter than a clip, last frame repeated"] if padded else []
    return ", ".join([f"{videos}/{total} videos", *notes])


def _train_progress(run: RunFolder) -> str:
    row = _last_row(run.metrics, "loss")
    if row is None:
        return ""
    total = files.read_json(run.spec("train"))["recipe"]["train"]["max_steps"]
    text = f"step {row['step']}/{total}, loss {row['loss']:.3f}"
    validated = _last_row(run.metrics, "validation_loss")
    if validated:
        text += f", validation loss {validated['validation_loss']:.3f}"
    if row["step"] < total:
        left = duration((total - row["step"]) * row["seconds"])
        text += f", {row['seconds']:.2f} s/step, {left} left"
    return text


def _last_row(path: Path, key: str, tail: int = 1 << 16) -> dict[str, Any] | None:
    """The last whole row that has ``key``, looking at the end of the file only."""
    if not path.exists():
        return None
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - tail))
        lines = f.read().splitlines(keepends=True)
    for line in reversed(lines):
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:  # cut at the beginning of the tail, or being written
            continue
        if key in row:
            return row
    return None
