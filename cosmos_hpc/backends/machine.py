"""What this machine's backends share: stages carried out one after another."""

from __future__ import annotations

import contextlib
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cosmos_hpc.backends.base import Backend, Request, head_of_dry_run
from cosmos_hpc.backends.findings import Finding, runs_finding
from cosmos_hpc.backends.machine_profile import MachineCluster, gpus_here, threads_of
from cosmos_hpc.config.gpus import visible_gpus
from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.in_flight import clear_in_flight
from cosmos_hpc.runs.logs import note_log
from cosmos_hpc.runs.queue import Queue
from cosmos_hpc.runs.stages import RunStage, missing_tasks, stage_progress, stages_of
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console

if TYPE_CHECKING:
    from cosmos_hpc.planning.plans import Plan

_POLL_SECONDS = 0.3
#: Seconds between looks for workers that were asked to stop.
_LOOK_SECONDS = 0.2


class Array(ABC):
    """Tasks of an array stage that run at the same time, each with a GPU of its own.

    Args:
        gpus: to hand out, as CUDA_VISIBLE_DEVICES names them; at least as many as tasks run at a
            time, or none.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        self._free_gpus = list(gpus)[::-1]
        self._jobs: dict[int, tuple[Any, list[str]]] = {}

    @abstractmethod
    def _begin(self, task: int, gpus: list[str]) -> tuple[Any, Path]:
        """Start a task; returns its handle and its log file."""

    @abstractmethod
    def _has_ended(self, job: Any) -> bool:
        """Whether a task has ended; releases what it held if so."""

    @abstractmethod
    def _stop(self, jobs: list[Any]) -> None:
        """Stop tasks, and wait until they are gone."""

    def start(self, task: int) -> Path:
        """Start a task; returns its log file.

        Raises:
            WorkError: it cannot be started.
        """
        gpus = [self._free_gpus.pop()] if self._free_gpus else []
        job, log = self._begin(task, gpus)
        self._jobs[task] = job, gpus
        return log

    @property
    def running(self) -> list[int]:
        """Tasks that were started and not yet found to have ended."""
        return list(self._jobs)

    def forget_ended(self) -> None:
        """Remove tasks that have ended from the list, and free their GPUs."""
        for task, (job, gpus) in list(self._jobs.items()):
            if self._has_ended(job):
                del self._jobs[task]
                self._free_gpus.extend(gpus)

    def cancel(self) -> None:
        """Stop all running tasks, and wait until they are gone."""
        self._stop([job for job, _ in self._jobs.values()])
        self._jobs.clear()


class MachineJob(contextlib.AbstractContextManager["MachineJob"], ABC):
    """A task that runs alone; it is started with the ``with`` block and ends with it."""

    @property
    @abstractmethod
    def log(self) -> Path | None:
        """File with both output streams; None before the task has begun."""

    @abstractmethod
    def running(self) -> bool:
        """Whether it has not ended yet."""

    @abstractmethod
    def cancel(self) -> None:
        """Stop it and its ranks, and wait until they are gone."""


M = TypeVar("M", bound=MachineCluster)


class MachineBackend(Backend[M, Queue, list[tuple[RunStage, list[int]]]]):
    """This machine: ``submit`` carries the stages out, one after another, and waits."""

    @abstractmethod
    def open(self, request: Request) -> Any:
        """What all tasks of a run are given.

        Raises:
            RequestError: it cannot be had.
        """

    @abstractmethod
    def array(
        self, run: RunFolder, stage: RunStage, opened: Any, threads: int, gpus: list[str]
    ) -> Array:
        """An array of a stage's tasks, of which each may use ``threads`` threads."""

    @abstractmethod
    def job(self, run: RunFolder, stage: RunStage, opened: Any, gpus: list[str]) -> MachineJob:
        """The only task of a stage."""

    @abstractmethod
    def command(
        self, run: RunFolder, stage: RunStage, task: int, opened: Any, gpus: list[str]
    ) -> list[str]:
        """Command line that does a task, for a person to paste."""

    def check(self) -> list[Finding]:
        """Whether GPUs and folders are as the profile says."""
        visible, wanted = len(visible_gpus()), self.cluster.gpus
        level = "ok" if visible >= wanted else "problem"
        return [
            Finding(level, f"gpus={wanted}, and this machine has {visible}"),
            runs_finding(self.cluster),
        ]

    def unchecked(self, opened: Any) -> str:
        """What a dry run could not check on this machine, as a sentence; empty for nothing."""
        return ""

    def check_request(self, request: Request) -> None:
        """Refuse GPUs that are not there, and what :meth:`open` cannot have."""
        if not self.unchecked(self.open(request)):
            gpus_here(self.cluster)

    def queue(self, run: RunFolder) -> Queue:
        """There is none; a submit that is alive drives the run."""
        try:
            return Queue(driven=files.is_locked(run.lock))
        except WorkError as e:
            return Queue(problem=str(e))

    def prepare(
        self, request: Request, queue: Queue, console: Console
    ) -> list[tuple[RunStage, list[int]]]:
        """The stages that were asked for, in order, each with its missing tasks."""
        run, recipe = request.folder, request.recipe
        return [
            (stage, missing_tasks(run, recipe, stage, request.tasks))
            for stage in stages_of(run, recipe)
            if stage.name in request.stages
        ]

    def submit(
        self, request: Request, prepared: list[tuple[RunStage, list[int]]], console: Console
    ) -> None:
        """Carry out the stages that are not done.

        Raises:
            RequestError: what tasks need cannot be had; nothing was started.
            WorkError: a stage failed; the message names its reasons and logs.
            KeyboardInterrupt: passed on after the running tasks have been stopped.
        """
        run, opened = request.folder, self.open(request)
        run.forget_stop()
        for stage, _ in prepared:
            # Looked at again: what an earlier stage has made again may have to be done again here.
            missing = missing_tasks(run, request.recipe, stage, request.tasks)
            if missing:
                self._carry_out(request, stage, missing, opened, console)
            else:
                progress = stage_progress(run, stage).words
                console.say(f"  {stage.name:<11} done before, {progress}".rstrip(", "))

    def _carry_out(
        self, request: Request, stage: RunStage, tasks: list[int], opened: Any, console: Console
    ) -> None:
        run = request.folder
        console.begin(stage.name)
        _mention_others(run, stage, tasks, console)
        for task in tasks:
            run.error(stage.name, task).unlink(missing_ok=True)
        gpus = gpus_here(self.cluster) if stage.kind.gpus else []
        if stage.kind.array:
            self._run_array(run, stage, tasks, opened, gpus, console)
        else:
            self._run_job(run, stage, opened, gpus[: stage.ranks], console)
        still = missing_tasks(run, request.recipe, stage, tasks)
        if still and run.stop_request.exists():
            console.end(stage.name, "stopped", stage_progress(run, stage).stopped)
            raise WorkError("stopped on request; the same command resumes")
        if still:
            _note_silent_deaths(run, stage, still)
            console.end(stage.name, "failed", stage_progress(run, stage).stopped)
            raise WorkError(_reasons(run, stage, still))
        console.end(stage.name, "done", stage_progress(run, stage).words)

    def _run_array(
        self,
        run: RunFolder,
        stage: RunStage,
        tasks: list[int],
        opened: Any,
        gpus: list[str],
        console: Console,
    ) -> None:
        parallel = self.cluster.parallel
        array = self.array(run, stage, opened, threads_of(self.cluster), gpus)
        queue = list(reversed(tasks))
        try:
            while queue or array.running:
                if run.stop_request.exists():
                    queue.clear()
                while queue and len(array.running) < parallel:
                    task = queue.pop()
                    note_log(run, stage.name, task, array.start(task))
                time.sleep(_POLL_SECONDS)
                array.forget_ended()
                if console.due():
                    how_far = stage_progress(run, stage)
                    console.progress(stage.name, how_far.working, how_far.fraction)
        finally:
            stopped = array.running
            array.cancel()
            # Their workers were stopped by us: no video is to blame that one had to be killed.
            for shard in stopped:
                clear_in_flight(run.tokens.in_flight(shard))

    def _run_job(
        self, run: RunFolder, stage: RunStage, opened: Any, gpus: list[str], console: Console
    ) -> None:
        # Of an earlier attempt, whose last steps may have to be done again.
        before = stage_progress(run, stage).words
        with self.job(run, stage, opened, gpus) as job:
            noted = False
            try:
                while job.running():
                    time.sleep(_POLL_SECONDS)
                    if not noted and job.log:
                        note_log(run, stage.name, 0, job.log)
                        noted = True
                    if console.due():
                        how_far = stage_progress(run, stage)
                        if how_far.words not in ("", before):
                            console.progress(stage.name, how_far.working, how_far.fraction)
            finally:
                job.cancel()
            if not noted and job.log:
                note_log(run, stage.name, 0, job.log)

    def render(
        self, request: Request, prepared: list[tuple[RunStage, list[int]]], plan: Plan
    ) -> str:
        """The plan as comments, and commands of the tasks that are missing."""
        run, opened = request.folder, self.open(request)
        unchecked = self.unchecked(opened)
        # Of a machine that is elsewhere, CUDA's numbers.
        here = [str(n) for n in range(self.cluster.gpus)] if unchecked else gpus_here(self.cluster)
        lines = head_of_dry_run(plan, run, unchecked)
        for stage, tasks in prepared:
            used = here[: stage.ranks] if stage.kind.gpus else []
            commands = [self.command(run, stage, task, opened, used) for task in tasks]
            lines += [shlex.join(command) for command in commands]
        return "\n".join(lines)

    def cancel(self, run: RunFolder, now: bool, console: Console) -> int:
        """Ask the workers to stop, those too that a killed submit has left behind.

        A run of a sweep whose turn has not come is kept from starting, and counts as one.
        """
        working, waiting = _workers(run), files.is_locked(run.turn)
        if working or waiting:
            files.write_atomic(run.stop_request, "")
            while left := _workers(run):
                console.progress("cancel", f"waiting for {', '.join(dict.fromkeys(left))}")
                time.sleep(_LOOK_SECONDS)
        if waiting and not working:
            console.say(f"  run {run.name} is kept from starting: its turn had not come")
        return len(working) or int(waiting)


def _workers(run: RunFolder) -> list[str]:
    """Who holds locks: the submit's, and those of tasks."""
    locks = [run.lock, *run.task_lock("x", 0).parent.glob("*")]
    return [holder for lock in locks if (holder := files.lock_holder(lock))]


def _mention_others(run: RunFolder, stage: RunStage, tasks: list[int], console: Console) -> None:
    """Say which processes still work on tasks: workers that a killed submit left behind."""
    for task in tasks:
        holder = files.lock_holder(run.task_lock(stage.name, task))
        if holder:
            which = f" task {task}" if stage.tasks > 1 else ""
            console.say(f"  {stage.name}{which} is still being worked on by {holder}; waiting")


def _latest_logs(run: RunFolder, stage: RunStage) -> dict[int, Path]:
    rows = files.read_jsonl(run.log_index)
    return {row["task"]: run.path / row["log"] for row in rows if row["stage"] == stage.name}


def _note_silent_deaths(run: RunFolder, stage: RunStage, tasks: list[int]) -> None:
    """Write a reason for tasks that were killed and left none."""
    logs = _latest_logs(run, stage)
    for task in tasks:
        if not run.error(stage.name, task).exists():
            reason = "ended without a reason, perhaps killed or out of memory"
            files.write_atomic(run.error(stage.name, task), reason + _tail(logs.get(task)) + "\n")


def _reasons(run: RunFolder, stage: RunStage, tasks: list[int]) -> str:
    """Why tasks failed, in words; the first few of them."""
    logs = _latest_logs(run, stage)
    lines = []
    for task in tasks[:3]:
        log = logs.get(task)
        reason = run.error(stage.name, task).read_text().strip()
        which = f" task {task}" if stage.tasks > 1 else ""
        lines.append(f"{stage.name}{which}: {reason}" + (f"\n  log: {log}" if log else ""))
    if len(tasks) > 3:
        lines.append(f"and {len(tasks) - 3} more tasks of {stage.name}")
    return "\n".join(lines)


def _tail(log: Path | None, lines: int = 5) -> str:
    if log is None or not log.exists():
        return ""
    last = log.read_text(errors="replace").splitlines()[-lines:]
    return "; its log ends:\n" + "\n".join(f"  | {line}" for line in last) if last else ""
