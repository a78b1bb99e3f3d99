"""The state of a run, from what is on the disk and what its queue says; never from a process."""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct, field, to_builtins

from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs import stages
from cosmos_hpc.runs.attempts import attempted_tasks
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.pace import hangs, quiet
from cosmos_hpc.runs.progress import HowFar, numbers
from cosmos_hpc.runs.queue import Queue
from cosmos_hpc.runs.sources import saved_checkpoint
from cosmos_hpc.runs.stages import RunStage
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import count_of, duration


class StageState(Struct, frozen=True):
    """How far a stage is.

    Attributes:
        name: of the stage.
        state: ``done``, ``running``, ``queued``, ``failed``, ``stopped`` (begun, not done, nobody
            works on it), ``waiting``, or ``unknown`` where the queue does not answer.
        tasks, done_tasks: array tasks, and those whose results are complete.
        progress: how far the work is, in words.
        fraction: of the work that is done, from 0 to 1; None where that is not known.
        errors: reasons of failed tasks, by task.
        jobs: jobs and array tasks in the queue, by its words for their states.
        after: what those that are pending wait for the end of, in words: mostly an earlier stage.
        waiting_for: why some are pending beside that, in the queue's words, and when the first may
            begin.
        last_progress: when a task that is worked on last got on, seconds since the epoch.
        quiet: tasks whose jobs do not seem to get on, or to end, and why that seems so.
    """

    name: str
    state: str
    tasks: int
    done_tasks: int
    progress: str
    errors: dict[int, str]
    jobs: dict[str, int] = field(default_factory=dict)
    after: str = ""
    waiting_for: str = ""
    last_progress: float | None = None
    quiet: dict[int, str] = field(default_factory=dict)
    fraction: float | None = None

    def queue_lines(self) -> list[str]:
        """What the queue says of it, for a person: its jobs, and why some are pending."""
        if self.state == "done" and not self.quiet:
            return []  # a job may still be ending
        jobs = ", ".join(f"{count} {state}" for state, count in self.jobs.items())
        lines = [f"in the queue: {jobs}"] if jobs else []
        lines += [f"waits for {self.after}"] if self.after else []
        return lines + ([f"pending for {self.waiting_for}"] if self.waiting_for else [])


class RunState(Struct, frozen=True):
    """State of a run and its stages.

    Attributes:
        failed_videos: their number, by kind of failure.
        note: what a person may want to do next.
        results: paths of what stages that are done have made, by what it is.
        failed_list: where the failed videos are listed.
        step: training steps so far; None before the first.
        max_steps: of the whole training; None of a run that only generates.
        loss: of the last step, in nats per token.
        validation_loss: of the last validation, in nats per token.
        tokens_per_second: that the training takes in, all ranks together, in its last steps.
        checkpoint: path of the newest whole checkpoint of the training; None before the first.
    """

    name: str
    path: str
    state: str
    stages: list[StageState]
    failed_videos: dict[str, int]
    note: str = ""
    results: dict[str, str] = field(default_factory=dict)
    failed_list: str = ""
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    checkpoint: str | None = None

    def __repr__(self) -> str:
        return self.render()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return to_builtins(self)

    def _repr_html_(self) -> str:
        from cosmos_hpc.runs.display import state_html

        return state_html(self)

    def render(self) -> str:
        """One screen for a person."""
        lines = [f"{self.name}: {self.state}  ({self.path})"]
        for stage in self.stages:
            tasks = f"{stage.done_tasks}/{stage.tasks} tasks  " if stage.tasks > 1 else ""
            lines.append(f"  {stage.name:<11} {stage.state:<8} {tasks}{stage.progress}".rstrip())
            lines += [f"    {line}" for line in (*_pace_lines(stage), *stage.queue_lines())]
            lines += [f"    {line}" for line in _task_lines(stage, stage.errors, "failed")]
            lines += [f"    {line}" for line in _task_lines(stage, stage.quiet, "such")]
        if self.failed_videos:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.failed_videos.items())
            videos = count_of(sum(self.failed_videos.values()), "video")
            lines.append(f"  {videos} failed ({kinds}), listed in {self.failed_list}")
        lines += [f"  {what:<11} {path}" for what, path in self.results.items()]
        lines += [f"  {self.note}"] if self.note else []
        return "\n".join(lines)


def _task_lines(stage: StageState, of_tasks: dict[int, str], which: str) -> Iterator[str]:
    """What is said of tasks, of the first few."""
    for task, text in list(of_tasks.items())[:3]:
        yield (f"task {task}: " if stage.tasks > 1 else "") + text
    if len(of_tasks) > 3:
        yield f"and {len(of_tasks) - 3} more {which} tasks"


def _pace_lines(stage: StageState) -> Iterator[str]:
    if stage.last_progress is not None:
        age = max(0.0, time.time() - stage.last_progress)
        yield f"last progress {duration(age)} ago"


def read_state(run: RunFolder, queue: Queue) -> RunState:
    """Read the state of a run.

    Args:
        run: its folder.
        queue: what its backend said of it.
    """
    recipe = run.recipe()
    found: list[StageState] = []
    done = stages.absent_stages(recipe)
    for stage in stages.stages_of(run, recipe):
        missing = stages.missing_tasks(run, recipe, stage)
        # Before the videos are listed there is not even a task to miss.
        if not missing and stage.tasks > 0:
            done.add(stage.name)
        errors = queue.deaths(stage.name, missing) | _errors(run, stage, missing, queue)
        errors = dict(sorted(errors.items()))
        state = _state(run, stage, missing, queue, errors, done)
        jobs = queue.stage(stage.name)
        last, quiet = _pace(run, stage, missing, queue, state)
        how_far = HowFar() if state == "waiting" else stages.stage_progress(run, stage)
        found.append(
            StageState(
                stage.name,
                state,
                stage.tasks,
                done_tasks=stage.tasks - len(missing),
                progress=_progress(how_far, state),
                errors=errors,
                jobs=jobs.counts,
                after=jobs.after,
                waiting_for=jobs.waiting_for,
                last_progress=last,
                quiet=quiet,
                fraction=1.0 if state == "done" else how_far.fraction,
            )
        )
    asked = {*stages.asked_for(run)}
    # What nobody has asked for and nobody has begun says nothing of the run.
    found = [
        stage
        for stage in found
        if stage.name in asked
        or stage.state not in ("waiting", "unknown")
        or not stages.STAGES[stage.name].looks_back
    ]
    overall = _overall(run, found)
    checkpoint = saved_checkpoint(run)
    # Older versions called it an error.
    kinds = Counter(r.get("kind") or r["error"] for r in files.read_jsonl(run.tokens.failed))
    return RunState(
        run.name,
        str(run.path),
        overall,
        found,
        failed_videos=dict(kinds.most_common()),
        note=_note(run, queue, overall, found),
        results=_results(run, [stage.name for stage in found if stage.state == "done"]),
        failed_list=str(run.tokens.failed),
        max_steps=recipe.train.max_steps if recipe.trains else None,
        checkpoint=str(checkpoint) if checkpoint else None,
        **numbers(run)._asdict(),
    )


def _progress(how_far: HowFar, state: str) -> str:
    if state in ("running", "queued"):
        return how_far.working
    return how_far.words if state == "done" else how_far.stopped


def _pace(
    run: RunFolder, stage: RunStage, missing: list[int], queue: Queue, state: str
) -> tuple[float | None, dict[int, str]]:
    """When a task of a stage last got on, and what is strange about those that are worked on."""
    at_work = queue.at_work(stage.name, stage.tasks)
    if state == "running" and not queue.stages:
        at_work = dict.fromkeys(_worked_on(run, stage, missing), "")
    paces, strange = [], {}
    for task, job in at_work.items():
        if task in missing:
            pace = stage.kind.pace(run, stage.name, task)
            paces += [pace] if pace else []
            said = quiet(run, stage.name, task, pace) if pace else ""
        else:
            said = hangs(stages.marker_path(run, stage.name, task))
        if said:
            strange[task] = f"{said} (job {job})" if job else said
    return max((pace.last for pace in paces), default=None), strange


def _state(
    run: RunFolder,
    stage: RunStage,
    missing: list[int],
    queue: Queue,
    errors: dict[int, str],
    done: set[str],
) -> str:
    """The word for a stage; ``done`` are those before it that are, and itself if it is."""
    jobs = queue.stage(stage.name)
    reached = done.issuperset(stages.needed_for(stage.name))
    if stage.name in done:
        return "done"
    if queue.problem:
        return "unknown"
    if jobs.counts:
        return "running" if jobs.running else "queued"
    if reached and (_is_next(run, stage, queue, done) or _is_worked_on(run, stage, missing)):
        return "running"
    if errors:
        return "failed"
    return "stopped" if reached and _begun(run, stage) else "waiting"


def _is_next(run: RunFolder, stage: RunStage, queue: Queue, done: set[str]) -> bool:
    """Whether a submit is alive, and this is the first stage that it has still to carry out."""
    left = [name for name in stages.asked_for(run) if name not in done]
    return queue.driven and stage.name in left[:1]


def _overall(run: RunFolder, found: list[StageState]) -> str:
    states = {stage.name: stage.state for stage in found}
    for state in ("unknown", "running", "queued", "failed"):
        if state in states.values():
            return state
    left = {name for name, state in states.items() if state != "done"}
    asked = {*stages.asked_for(run)}
    if not left & {*stages.default_stages(), *asked}:
        return "done"
    if not run.begun():
        return "prepared"
    return "stopped" if left & asked else "partial"


def _note(run: RunFolder, queue: Queue, overall: str, found: list[StageState]) -> str:
    """What a person may want to do about a run."""
    retry = f"cosmos-hpc retry {_named(run)}"
    if overall == "partial":
        following = next(stage.name for stage in found if stage.state != "done")
        return f"the stages that were asked for are done; {retry} {following} runs the others"
    if overall in ("running", "queued") and run.stop_request.exists():
        age = duration(max(0.0, time.time() - run.stop_request.stat().st_mtime))
        kill = f"; cosmos-hpc cancel {_named(run)} --now kills its jobs" if queue.stages else ""
        return f"a stop was requested {age} ago: what runs ends at its next safe point{kill}"
    advice = queue.advice(overall == "done", run.begun(), retry)
    if not advice and queue.stages and any(stage.quiet for stage in found):
        return (
            f"what is quiet may hang: cosmos-hpc logs tells more, cosmos-hpc cancel {_named(run)} "
            f"--now ends it, and {retry} resumes from what is done"
        )
    return advice


def _results(run: RunFolder, done: list[str]) -> dict[str, str]:
    """What the stages that are done have made, by what it is."""
    return {
        what: str(path)
        for name in done
        for what, path in stages.STAGES[name].results(run, stages.marker_path(run, name)).items()
    }


def _named(run: RunFolder) -> str:
    """How to name a run in a command that is typed here."""
    here = Path("runs", run.name)
    return run.name if here.is_dir() and here.samefile(run.path) else shlex.quote(str(run.path))


def _errors(run: RunFolder, stage: RunStage, missing: list[int], queue: Queue) -> dict[int, str]:
    folder = run.error(stage.name, 0).parent
    left = (re.fullmatch(rf"{stage.name}\.(\d+)\.txt", name) for name in files.names_in(folder))
    errors = {}
    for task in {int(found[1]) for found in left if found} & {*missing}:
        # A job that begins removes what its last attempt has left.
        with contextlib.suppress(FileNotFoundError):
            if not queue.replaces(stage.name, task):
                errors[task] = run.error(stage.name, task).read_text().strip()
    return errors


def _is_worked_on(run: RunFolder, stage: RunStage, tasks: list[int]) -> bool:
    return next(_worked_on(run, stage, tasks), None) is not None


def _worked_on(run: RunFolder, stage: RunStage, tasks: list[int]) -> Iterator[int]:
    """Tasks whose worker is alive, perhaps one that a killed submit left behind."""
    # Without locks, what the queue says is all that is known.
    with contextlib.suppress(WorkError):
        yield from (t for t in tasks if files.is_locked(run.task_lock(stage.name, t)))


def _begun(run: RunFolder, stage: RunStage) -> bool:
    if attempted_tasks(run, stage.name):
        return True
    return any(row["stage"] == stage.name for row in files.read_jsonl(run.log_index))
