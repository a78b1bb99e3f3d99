"""Tasks of an array stage in processes of this machine: the module that knows submitit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmos_hpc.backends.machine import Array
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import RunStage, task_command

#: Longer than any stage: submitit's local executor wants a limit.
_NO_TIMEOUT_MINUTES = 60 * 24 * 365
#: Seconds that controllers have to end by themselves.
_STOP_SECONDS = 3.0


@contextlib.contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Processes started in the block write their errors to a file.

    submitit's controllers would print a traceback each into the terminal at Ctrl-C.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = os.dup(2)
    try:
        with open(path, "ab") as f:
            os.dup2(f.fileno(), 2)
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)


class LocalArray(Array):
    """An array in processes, through submitit's local executor.

    Args:
        run: the run folder; submitit's logs and pickles go below its logs.
        stage: the array stage.
        environment: variables that every task gets on top of this process's own.
        gpus: see :class:`~cosmos_hpc.backends.machine.Array`.
    """

    def __init__(
        self, run: RunFolder, stage: RunStage, environment: dict[str, str], gpus: list[str]
    ) -> None:
        super().__init__(gpus)
        self._run, self._stage = run, stage
        self._environment = environment

    def _begin(self, task: int, gpus: list[str]) -> tuple[Any, Path]:
        import submitit

        executor = submitit.LocalExecutor(self._run.logs / self._stage.name)
        executor.update_parameters(timeout_min=_NO_TIMEOUT_MINUTES, stderr_to_stdout=True)
        # submitit sets CUDA_VISIBLE_DEVICES by number, which is wrong where only some are ours.
        values = {**self._environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        environment = [f"{key}={value}" for key, value in values.items()]
        command = ["env", *environment, *task_command(self._run, self._stage, task)]
        # A command and a spec instead of live objects, in the place of submitit's own process: at
        # Ctrl-C that would leave it a quarter of a second. Not submitit's CommandFunction: that
        # keeps all output in memory and fails on bytes that are not UTF-8.
        with _stderr_to(self._run.logs / self._stage.name / "submitit.log"):
            job = executor.submit(os.execvp, command[0], command)
        return job, Path(job.paths.stdout)

    def _has_ended(self, job: Any) -> bool:
        return bool(job.done())

    def _stop(self, jobs: list[Any]) -> None:
        # Ctrl-C has reached submitit's controllers as well. They give their tasks a second; asked
        # again meanwhile, they would go and leave them behind.
        deadline = time.monotonic() + _STOP_SECONDS
        for job in jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job._process.wait(max(0.0, deadline - time.monotonic()))
        for job in jobs:
            if not job.done():
                job.cancel()
        for job in jobs:
            job._process.wait()
