"""Tasks of an array stage in containers of this machine."""

from __future__ import annotations

from pathlib import Path

from cosmos_hpc.backends.docker import Containers
from cosmos_hpc.backends.experiments import DockerJob
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import Stage


class DockerArray:
    """As :class:`~cosmos_hpc.backends.submitit_arrays.LocalArray`: a container a task.

    Args:
        run: the run folder.
        stage: the array stage.
        environment: variables that every task gets.
        gpus: GPUs to hand out, one to a task at a time; at least as many as tasks run at a time,
            or none.
        containers: what the containers are given.
    """

    def __init__(
        self,
        run: RunFolder,
        stage: Stage,
        environment: dict[str, str],
        gpus: list[str],
        containers: Containers,
    ) -> None:
        self._run, self._stage, self._containers = run, stage, containers
        self._environment = environment
        self._free_gpus = gpus[::-1]
        self._jobs: dict[int, tuple[DockerJob, list[str]]] = {}

    def start(self, task: int) -> Path:
        """Start a task; returns its log file.

        Raises:
            WorkError: the engine does not start it.
        """
        gpus = [self._free_gpus.pop()] if self._free_gpus else []
        job = DockerJob(self._run, self._stage, task, self._containers, gpus, self._environment)
        job.__enter__()
        self._jobs[task] = (job, gpus)
        return job.log

    @property
    def running(self) -> list[int]:
        """Tasks that were started and not yet found to have ended."""
        return list(self._jobs)

    def forget_ended(self) -> None:
        """Take tasks that have ended off the list, and their GPUs back."""
        for task, (job, gpus) in list(self._jobs.items()):
            if not job.running():
                del self._jobs[task]
                self._free_gpus.extend(gpus)
                job.__exit__(None, None, None)

    def cancel(self) -> None:
        """Stop all running tasks, and wait until they are gone."""
        for job, _ in self._jobs.values():
            job.cancel()
        for job, _ in self._jobs.values():
            job.__exit__(None, None, None)
        self._jobs.clear()
