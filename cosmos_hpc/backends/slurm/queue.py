"""What Slurm and the notes of jobs say of a run's stages."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import dataclass, field

from cosmos_hpc.backends.slurm import job_commands as slurm_jobs
from cosmos_hpc.backends.slurm.job_commands import SlurmJob
from cosmos_hpc.backends.slurm.submit import STUCK, active_jobs, names_of, tasks_of
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.attempts import attempted_tasks, read_attempt
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import Stage
from cosmos_hpc.utils import files


@dataclass
class StageJobs:
    """Jobs of a stage in the queue.

    Attributes:
        jobs: array tasks one by one.
    """

    jobs: list[SlurmJob] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether one has begun."""
        return any(not job.waits for job in self.jobs)

    @property
    def counts(self) -> dict[str, int]:
        """Jobs and array tasks by Slurm's state."""
        return dict(Counter(job.state for job in self.jobs).most_common())

    @property
    def waiting_for(self) -> str:
        """Why jobs are pending, and when the first may begin; empty where none is."""
        pending = [job for job in self.jobs if job.waits]
        reasons = Counter(job.reason for job in pending if job.reason != "None")
        said = ", ".join(reason for reason, _ in reasons.most_common(3))
        start = min((job.start for job in pending if job.start), default="")
        return said + (f", may begin {start.replace('T', ' ')}" if start else "")


class SlurmView:
    """What Slurm says of a run now.

    Attributes:
        problem: why Slurm does not say anything; empty where it does.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._stages: dict[str, StageJobs] = {}
        self._ended: dict[str, str] | None = None
        self.problem = ""
        try:
            for stage, job in active_jobs(run):
                self._stages.setdefault(stage, StageJobs()).jobs.append(job)
        except RequestError as e:
            self.problem = str(e)

    def stage(self, name: str) -> StageJobs:
        """Jobs of a stage in the queue."""
        return self._stages.get(name, StageJobs())

    @property
    def queue_is_empty(self) -> bool:
        """Whether nothing of the run is queued, for all that is known."""
        return not self.problem and not self._stages

    @property
    def stuck(self) -> bool:
        """Whether a job is in the queue that will never begin."""
        return any(job.reason in STUCK for stage in self._stages.values() for job in stage.jobs)

    def silent_deaths(self, stage: Stage, missing: list[int]) -> dict[int, str]:
        """What is known of tasks that began, are not done, and left neither a reason nor the queue.

        A killed script, a node that failed for good or a time limit that came without a warning
        leaves nothing behind.
        """
        if self.problem:
            return {}
        busy = {t for job in self.stage(stage.name).jobs for t in tasks_of(job, stage.tasks)}
        found = {}
        for task in set(attempted_tasks(self._run, stage.name)) & set(missing) - busy:
            attempt = read_attempt(self._run, stage.name, task)
            if attempt and not attempt.why:
                found[task] = f"ended without a word on {attempt.node}" + self._verdict(attempt.job)
        return found

    def _verdict(self, job: str) -> str:
        """How accounting says that a job ended, where it says anything."""
        if self._ended is None:
            created = files.read_json(self._run.info)["created"]
            # Slurm's times are local ones, and its clock may be another.
            since = datetime.datetime.fromisoformat(created) - datetime.timedelta(days=1)
            self._ended = slurm_jobs.ended(list(names_of(self._run)), f"{since:%Y-%m-%d}") or {}
        state = self._ended.get(job)
        return f"; Slurm says {state}" if state else ", perhaps killed"
