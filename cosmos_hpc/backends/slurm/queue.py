"""The state of a run's stages, from Slurm and the notes of jobs."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import field

from cosmos_hpc.backends.slurm import commands
from cosmos_hpc.backends.slurm.commands import SlurmJob
from cosmos_hpc.backends.slurm.jobs import job_name, tasks_of
from cosmos_hpc.errors import CosmosError, RequestError
from cosmos_hpc.runs.attempts import attempted_tasks, read_attempt
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.queue import Queue, StageQueue
from cosmos_hpc.runs.stages import STAGES, is_done, nearest_before, stages_of
from cosmos_hpc.runs.sweeps import TAKES_OVER, source_of
from cosmos_hpc.utils import files

#: Slurm's reasons for jobs that will never begin: what they waited for has failed, or their node
#: did not take them, after which Slurm holds them.
STUCK = (
    "DependencyNeverSatisfied",
    "launch failed requeued held",
    "user env retrieval failed requeued held",
)
#: Stages of a run that takes over tokens which wait for them; the first one so that two runs do not
#: fetch the same files at the same time.
AWAIT_TOKENS = ("download", TAKES_OVER)
#: Slurm's reason for jobs that wait for the end of others.
_DEPENDENCY = "Dependency"


def names_of(run: RunFolder) -> dict[str, str]:
    """Stages by the names of their jobs in the queue."""
    run_id = run.id()
    return {job_name(run, stage, run_id): stage for stage in STAGES}


def active_jobs(run: RunFolder) -> list[tuple[str, SlurmJob]]:
    """Jobs of the run in the queue, each with its stage.

    Raises:
        RequestError: Slurm does not answer, or would not show them to this user.
    """
    names = names_of(run)
    found = [(names[job.name], job) for job in commands.queued(list(names)) if job.active]
    if not found:
        _check_visible(run, commands.config)
    return found


def preparing_jobs(run: RunFolder, source: RunFolder) -> list[str]:
    """Ids of the jobs that are going to prepare the tokens which a run takes over.

    Raises:
        RequestError: there are none; or see :func:`active_jobs`.
    """
    jobs = [job for stage, job in active_jobs(source) if stage == TAKES_OVER]
    found = [job.id for job in jobs if job.reason not in STUCK]
    if not found:
        raise RequestError(
            f"run {run.name} takes over the tokens of run {source.name}, which has not prepared "
            f"them, and no job in the queue will; cosmos-hpc retry {source.path} first"
        )
    return found


def _check_visible(run: RunFolder, config: Callable[[], dict[str, str]]) -> None:
    """Refuse to say that nothing is in the queue where jobs would not be seen from here.

    Args:
        run: that no job was found of.
        config: settings of the cluster, which are asked for where they matter.

    Raises:
        RequestError: its jobs may be hidden, or on another cluster; or Slurm does not answer.
    """
    mine = os.geteuid() in (0, run.info.stat().st_uid)
    if not mine and commands.hides_jobs_of_others(config()):
        raise RequestError(
            f"run {run.name} was submitted by somebody else, and this cluster shows nobody the "
            f"jobs of others"
        )
    rows = files.read_jsonl(run.jobs)
    submitted = next((row["cluster"] for row in reversed(rows) if "cluster" in row), None)
    if submitted and submitted != (here := commands.name_in(config())):
        raise RequestError(
            f"run {run.name} was submitted to cluster {submitted}, and Slurm here is that of "
            f"{here}; use a login node of {submitted}, or remove {run.jobs} when nothing of the "
            f"run is queued there any more"
        )


class SlurmQueue(Queue):
    """The jobs of a run that Slurm knows now.

    Attributes:
        run: its folder.
        jobs: its jobs in the queue, array tasks one by one, each with its stage.
    """

    run: RunFolder | None = None
    jobs: list[tuple[str, SlurmJob]] = field(default_factory=list)
    _ended: dict[str, str] | None = None

    @property
    def stuck(self) -> list[SlurmJob]:
        """Jobs that will never begin."""
        return [job for _, job in self.jobs if job.reason in STUCK]

    def at_work(self, stage: str, tasks: int) -> dict[int, str]:
        """Tasks that running jobs work on: an array task takes turns of several."""
        if self.run is None:
            return {}
        found = {}
        for name, job in self.jobs:
            for task in tasks_of(job, tasks) if (name, job.state) == (stage, "RUNNING") else ():
                attempt = read_attempt(self.run, stage, task)
                if attempt and attempt.job == job.id and not attempt.why:
                    found[task] = job.id
        return found

    def replaces(self, stage: str, task: int) -> bool:
        """Whether the job of the last attempt is gone, and another one has the task."""
        if self.run is None or task not in self.stage(stage).tasks:
            return False
        attempt = read_attempt(self.run, stage, task)
        return attempt is not None and attempt.job not in {job.id for _, job in self.jobs}

    def deaths(self, stage: str, missing: list[int]) -> dict[int, str]:
        """What is known of tasks that began, are not done, and left neither a reason nor the queue.

        A killed script, a node that failed for good or a time limit that came without a warning
        leaves nothing behind.
        """
        if self.problem or self.run is None:
            return {}
        found = {}
        for task in set(attempted_tasks(self.run, stage)) & set(missing) - self.stage(stage).tasks:
            attempt = read_attempt(self.run, stage, task)
            if attempt and not attempt.why:
                if self._ended is None:
                    self._ended = _ended(self.run)
                state = self._ended.get(attempt.job)
                verdict = f"; Slurm says {state}" if state else ", perhaps killed"
                found[task] = f"ended without a reason on {attempt.node}{verdict}"
        return found

    def advice(self, done: bool, begun: bool, retry: str) -> str:
        """Why Slurm says nothing, or how to submit what is neither done nor queued."""
        if self.problem:
            return f"what is in the queue is not known: {self.problem}"
        if self.stuck:
            return f"jobs that Slurm will not start are replaced by {retry}"
        if done or self.jobs:
            return ""
        if not begun:
            return "nothing of it was submitted yet; the folder is only prepared"
        return f"nothing of it is in the queue; {retry} resumes it"


def read_queue(run: RunFolder) -> SlurmQueue:
    """Ask Slurm about a run."""
    if not run.info.exists():
        return SlurmQueue()
    try:
        return _queue_of(run, active_jobs(run))
    except RequestError as e:
        return unknown_queue(run, str(e))


def read_queues(runs: Sequence[RunFolder]) -> list[SlurmQueue]:
    """Ask Slurm once about several runs; how jobs ended is not asked for."""
    names = {name: run.path for run in runs for name in names_of(run)}
    jobs: dict[Path, list[SlurmJob]] = {run.path: [] for run in runs}
    try:
        for job in commands.queued_of_many(names):
            jobs[names[job.name]] += [job] if job.active else []
    except RequestError as e:
        return [unknown_queue(run, str(e)) for run in runs]
    config = functools.cache(commands.config)
    return [_one_of_many(run, jobs[run.path], config) for run in runs]


def _one_of_many(
    run: RunFolder, jobs: list[SlurmJob], config: Callable[[], dict[str, str]]
) -> SlurmQueue:
    names = names_of(run)
    try:
        if not jobs:
            _check_visible(run, config)
        queue = _queue_of(run, [(names[job.name], job) for job in jobs])
    except RequestError as e:
        return unknown_queue(run, str(e))
    queue._ended = {}
    return queue


def unknown_queue(run: RunFolder, why: str) -> SlurmQueue:
    """The queue of a run that Slurm says nothing of, and why."""
    return SlurmQueue(problem=why, reachable=commands.is_here("squeue"), run=run)


def _queue_of(run: RunFolder, jobs: list[tuple[str, SlurmJob]]) -> SlurmQueue:
    by_stage: dict[str, list[SlurmJob]] = {}
    for stage, job in jobs:
        by_stage.setdefault(stage, []).append(job)
    if not jobs:  # then the recipe need not be read
        return SlurmQueue(run=run)
    sizes = {stage.name: stage.tasks for stage in stages_of(run, run.recipe())}
    tokens = _awaited_tokens(run)
    stages: dict[str, StageQueue] = {}
    said: set[str] = set()
    for name in sorted(by_stage, key=list(STAGES).index):
        before = nearest_before(name, by_stage.__contains__)
        before += tokens if name in AWAIT_TOKENS else []
        # Jobs of a stage that the run has no longer: a request before was another one.
        stages[name] = _stage_queue(by_stage[name], sizes.get(name, 1), before, said)
        said |= {job.reason for job in by_stage[name]}
    return SlurmQueue(stages, run=run, jobs=jobs)


def _awaited_tokens(run: RunFolder) -> list[str]:
    """The stage of another run whose tokens a run is going to take over, until it is done."""
    with contextlib.suppress(CosmosError, OSError):
        source = source_of(run)
        if source and not is_done(source, source.recipe(), TAKES_OVER):
            return [f"{TAKES_OVER} of run {source.name}"]
    return []


def _stage_queue(jobs: list[SlurmJob], tasks: int, before: list[str], said: set[str]) -> StageQueue:
    """The jobs of a stage: how many are in which state, and what the pending ones wait for.

    Args:
        jobs: of the stage.
        tasks: how many it has.
        before: what they wait for the end of.
        said: reasons of jobs before them, which those that wait for these need not give again.
    """
    pending = [job for job in jobs if job.waits]
    reasons = Counter(job.reason for job in pending if job.reason != "None")
    behind = {_DEPENDENCY, *said} & {*reasons} if before else set()
    if not before and _DEPENDENCY in reasons and len(reasons) + (len(pending) < len(jobs)) > 1:
        before, behind = ["other jobs of this stage"], {_DEPENDENCY}
    own = [reason for reason, _ in reasons.most_common() if reason not in behind]
    starts = sorted(job.start for job in pending if job.start)
    begins = [f"may begin {start.replace('T', ' ')}" for start in starts[:1]]
    return StageQueue(
        counts=dict(Counter(job.state for job in jobs).most_common()),
        running=len(pending) < len(jobs),
        after=" and ".join(before) if behind else "",
        waiting_for=", ".join([*own[:3], *begins]),
        tasks={task for job in jobs for task in tasks_of(job, tasks)},
    )


def _ended(run: RunFolder) -> dict[str, str]:
    """How accounting says that jobs ended, by id, where it says anything."""
    created = files.read_json(run.info)["created"]
    # Slurm's times are local ones, and its clock may be another.
    since = datetime.datetime.fromisoformat(created) - datetime.timedelta(days=1)
    return commands.ended(list(names_of(run)), f"{since:%Y-%m-%d}") or {}
