"""A Slurm cluster: every stage a job or an array, each waiting for those before it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_hpc.backends.base import Backend, Request
from cosmos_hpc.backends.findings import Finding
from cosmos_hpc.backends.slurm import commands
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.backends.slurm.queue import SlurmQueue, read_queue, read_queues, unknown_queue
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.queue import Queue
from cosmos_hpc.utils.console import Console

if TYPE_CHECKING:
    import nemo_run

    from cosmos_hpc.backends.slurm.submit import Submission
    from cosmos_hpc.planning.plans import Plan
    from cosmos_hpc.runs.stages import RunStage

# What each method needs beside these is imported by it: status asks the queue and no more.

#: Seconds between questions whether jobs are left, by who follows the logs.
_ASK_EVERY = 10.0


class SlurmBackend(Backend[SlurmCluster, SlurmQueue, "Submission"]):
    """Slurm, through its commands."""

    schema = SlurmCluster
    returns_when = "queued"

    def __init__(self, cluster: SlurmCluster) -> None:
        super().__init__(cluster)
        self._asked: tuple[float, bool] | None = None
        self._silence: str | None = None

    def check(self) -> list[Finding]:
        """Compare the profile with the cluster that this machine belongs to."""
        from cosmos_hpc.backends.slurm.check import check

        return check(self.cluster)

    def take_note(self, run: RunFolder) -> None:
        """Record jobs that came from the pasted text of a dry run."""
        if run.info.exists() and not run.begun():
            from cosmos_hpc.backends.slurm.submit import record_pasted

            record_pasted(run, read_queue(run))

    def is_elsewhere(self) -> bool:
        """Whether no Slurm answers here; asked once."""
        if self._silence is None:
            self._silence = commands.silence()
        return bool(self._silence)

    def check_request(self, request: Request) -> None:
        """Refuse what the cluster cannot do, as far as is known without asking about a job."""
        from cosmos_hpc.backends.slurm.check import PYTHON_OF_JOBS, problems
        from cosmos_hpc.backends.slurm.script import check_path
        from cosmos_hpc.backends.slurm.secrets import find_secrets
        from cosmos_hpc.runs.requirements import check_installed

        known = not (request.dry_run and self.is_elsewhere())
        if self.cluster.python == sys.executable and known:
            check_installed(request.stages, PYTHON_OF_JOBS)
        check_path(request.folder.path)
        find_secrets(self.cluster)
        if not request.dry_run:
            for problem in problems(self.cluster):
                raise RequestError(
                    f"cluster {self.cluster.name}: {problem}. No job of this run was submitted"
                )

    def queue(self, run: RunFolder) -> SlurmQueue:
        """Ask Slurm about the jobs of a run, unless it is known not to answer."""
        if self._silence and run.info.exists():
            return unknown_queue(run, self._silence)
        return read_queue(run)

    def queues(self, runs: Sequence[RunFolder]) -> list[Queue]:
        """Ask Slurm once about the jobs of many runs."""
        return [*read_queues(runs)]

    def prepare(self, request: Request, queue: SlurmQueue, console: Console) -> Submission:
        """The jobs that are to be submitted, each with its script."""
        from cosmos_hpc.backends.slurm.submit import prepare

        elsewhere = request.dry_run and self.is_elsewhere()
        return prepare(request, self.cluster, queue, console, elsewhere)

    def submit(self, request: Request, prepared: Submission, console: Console) -> None:
        """Submit jobs, all or none of them."""
        from cosmos_hpc.backends.slurm.submit import submit

        submit(request.folder, self.cluster, prepared, console)

    def render(self, request: Request, prepared: Submission, plan: Plan) -> str:
        """Commands that submit each script with what it waits for."""
        from cosmos_hpc.backends.slurm.dry_run import text

        return text(plan, request.folder, prepared, self.cluster, self._silence or "")

    def write(self, request: Request, prepared: Submission, plan: Plan, folder: Path) -> list[Path]:
        """Each script, and one that submits them."""
        from cosmos_hpc.backends.slurm.dry_run import write

        return write(plan, request.folder, prepared, self.cluster, folder, self._silence or "")

    def cancel(self, run: RunFolder, now: bool, console: Console) -> int:
        """Take what is queued out of the queue, ask what runs to stop, and wait until it has."""
        from cosmos_hpc.backends.slurm.cancel import cancel

        return cancel(run, now, console)

    def executor(
        self, stage: RunStage, run: RunFolder | None, number: int
    ) -> nemo_run.SlurmExecutor:
        """Jobs as the profile says, submitted from here."""
        from cosmos_hpc.backends.slurm.executor import executor

        return executor(self.cluster, stage, run)

    def task(self, run: RunFolder, stage: RunStage, number: int) -> nemo_run.Script:
        """The worker on all nodes of the job, under torchrun with several ranks."""
        from cosmos_hpc.backends.slurm.executor import task

        return task(self.cluster, run, stage, number)

    def is_working(self, run: RunFolder) -> bool:
        """According to the queue, which is asked only from time to time."""
        if self._asked is None or time.monotonic() - self._asked[0] > _ASK_EVERY:
            found = read_queue(run)
            # It may answer again.
            before = self._asked[1] if self._asked else True
            self._asked = time.monotonic(), before if found.problem else found.working
        return self._asked[1]
