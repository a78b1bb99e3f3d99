"""The one place that knows submitit: tasks of an array stage as jobs of its executors."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from cosmos_hpc.runs import RunFolder
from cosmos_hpc.stages import Stage, task_command

#: Longer than any stage: submitit's local executor wants a limit.
_NO_TIMEOUT_MINUTES = 60 * 24 * 365


class LocalArray:
    """Tasks of an array stage in processes of this machine, through submitit's local executor.

    Args:
        run: the run folder; submitit's logs and pickles go below its logs.
        stage: the array stage.
        environment: variables that every task gets on top of this process's own.
        gpus: GPUs to hand out, one to a task at a time; 0 for none.
    """

    def __init__(
        self, run: RunFolder, stage: Stage, environment: dict[str, str], gpus: int
    ) -> None:
        self._run, self._stage = run, stage
        self._environment = environment
        self._free_gpus = list(range(gpus))
        self._jobs: dict[int, tuple[Any, list[int]]] = {}

    def start(self, task: int) -> Path:
        """Start a task; returns its log file."""
        import submitit

        executor = submitit.LocalExecutor(self._run.logs / self._stage.name)
        gpus = [self._free_gpus.pop()] if self._free_gpus else []
        executor.update_parameters(
            timeout_min=_NO_TIMEOUT_MINUTES,
            stderr_to_stdout=True,
            gpus_per_node=len(gpus),
            visible_gpus=gpus,
        )
        # A command and a spec instead of live objects. Not submitit's CommandFunction: that keeps
        # all output in memory and fails on bytes that are not UTF-8.
        environment = [f"{key}={value}" for key, value in self._environment.items()]
        command = ["env", *environment, *task_command(self._run, self._stage, task)]
        job = executor.submit(subprocess.check_call, command)
        self._jobs[task] = (job, gpus)
        return Path(job.paths.stdout)

    @property
    def running(self) -> list[int]:
        """Tasks that were started and not yet reported as ended."""
        return list(self._jobs)

    def ended(self) -> list[int]:
        """Tasks that have ended since the last call."""
        ended = [task for task, (job, _) in self._jobs.items() if job.done()]
        for task in ended:
            _, gpus = self._jobs.pop(task)
            self._free_gpus.extend(gpus)
        return ended

    def cancel(self) -> None:
        """Stop all running tasks, and wait until they are gone."""
        for job, _ in self._jobs.values():
            job.cancel()
        for job, _ in self._jobs.values():
            job._process.wait()
        self._jobs.clear()
