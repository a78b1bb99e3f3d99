"""The one place that knows submitit: tasks of an array stage as jobs of its executors."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cosmos_hpc.backends.slurm.commands import last_line
from cosmos_hpc.backends.slurm.job_commands import clean_environment
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import Stage, task_command

#: Longer than any stage: submitit's local executor wants a limit.
_NO_TIMEOUT_MINUTES = 60 * 24 * 365
#: Seconds that controllers have to end by themselves.
_PATIENCE_SECONDS = 3.0


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


class LocalArray:
    """Tasks of an array stage in processes of this machine, through submitit's local executor.

    Args:
        run: the run folder; submitit's logs and pickles go below its logs.
        stage: the array stage.
        environment: variables that every task gets on top of this process's own.
        gpus: GPUs to hand out, one to a task at a time, as CUDA_VISIBLE_DEVICES names them; at
            least as many as tasks run at a time, or none.
    """

    def __init__(
        self, run: RunFolder, stage: Stage, environment: dict[str, str], gpus: list[str]
    ) -> None:
        self._run, self._stage = run, stage
        self._environment = environment
        self._free_gpus = gpus[::-1]
        self._jobs: dict[int, tuple[Any, list[str]]] = {}

    def start(self, task: int) -> Path:
        """Start a task; returns its log file."""
        import submitit

        executor = submitit.LocalExecutor(self._run.logs / self._stage.name)
        gpus = [self._free_gpus.pop()] if self._free_gpus else []
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
        self._jobs[task] = (job, gpus)
        return Path(job.paths.stdout)

    @property
    def running(self) -> list[int]:
        """Tasks that were started and not yet found to have ended."""
        return list(self._jobs)

    def forget_ended(self) -> None:
        """Take tasks that have ended off the list, and their GPUs back."""
        for task, (job, gpus) in list(self._jobs.items()):
            if job.done():
                del self._jobs[task]
                self._free_gpus.extend(gpus)

    def cancel(self) -> None:
        """Stop all running tasks, and wait until they are gone."""
        # Ctrl-C has reached submitit's controllers as well. They give their tasks a second; asked
        # again meanwhile, they would go and leave them behind.
        patience = time.monotonic() + _PATIENCE_SECONDS
        for job, _ in self._jobs.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                job._process.wait(max(0.0, patience - time.monotonic()))
        for job, _ in self._jobs.values():
            if not job.done():
                job.cancel()
        for job, _ in self._jobs.values():
            job._process.wait()
        self._jobs.clear()


def submit_array(script: Path, flags: Sequence[str]) -> str:
    """Submit a job array to Slurm through submitit; one sbatch call, however many tasks it has.

    submitit's own arrays are of pickled functions, one file a task, and cannot be read before they
    run; here its executor takes a script as it is.

    Args:
        script: complete, with its ``#SBATCH`` lines.
        flags: of sbatch, on top of them.

    Returns:
        The job's id.

    Raises:
        RequestError: Slurm does not take it.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    class Executor(submitit.SlurmExecutor):
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return command

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["sbatch", *flags, str(submission_file_path)]

    try:
        # It prints what the error says as well.
        with clean_environment(), contextlib.redirect_stderr(io.StringIO()):
            executor = Executor(script.parent / "submitted")
            executor.folder.mkdir(exist_ok=True)
            return str(executor._submit_command(script.read_text()).job_id)
    except (FailedJobError, FailedSubmissionError, RuntimeError) as e:
        raise RequestError(f"Slurm does not take {script}: {last_line(str(e))}") from None
