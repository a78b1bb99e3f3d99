"""Submits the stages of a run to a Slurm cluster: what is missing and not queued, in order."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cosmos_hpc.backends.base import Request
from cosmos_hpc.backends.slurm import commands
from cosmos_hpc.backends.slurm.facts import container_options
from cosmos_hpc.backends.slurm.jobs import JobSpec, job_name, jobs_of, tasks_of
from cosmos_hpc.backends.slurm.limits import check_memory, check_room, rooms_of
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.backends.slurm.queue import (
    AWAIT_TOKENS,
    STUCK,
    SlurmQueue,
    preparing_jobs,
    read_queue,
)
from cosmos_hpc.backends.slurm.script import render
from cosmos_hpc.backends.slurm.secrets import Secrets, find_secrets
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.hub import needs as hub
from cosmos_hpc.planning.plans import host_bytes
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import (
    STAGES,
    is_done,
    missing_tasks,
    nearest_before,
    sources_of,
    stages_of,
)
from cosmos_hpc.runs.sweeps import TAKES_OVER, source_of
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console
from cosmos_hpc.utils.progress import count_of

#: Variable of the text of a dry run with the ids of the jobs that prepare tokens.
PREPARED = "prepared"
_POLL_SECONDS = 1.0
#: Seconds that ending jobs are waited for; as long as Slurm itself waits for their processes.
_ENDING_SECONDS = 90


@dataclass
class Submission:
    """Jobs of a run that are to be submitted, in order, and what is in the queue already.

    Attributes:
        jobs: with the script of each.
        queued: ids of jobs in the queue, by stage.
        waiting: stages of one job that is in the queue and has not begun.
        stuck: ids of jobs in the queue that will never begin.
        secrets: what the jobs read by themselves.
        awaited: ids of jobs of the run whose tokens this one takes over, which have to succeed.
        awaited_name: their name in the queue, by which the text of a dry run finds their ids.
    """

    jobs: list[tuple[JobSpec, str]] = field(default_factory=list)
    queued: dict[str, list[str]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    secrets: Secrets = field(default_factory=Secrets)
    awaited: list[str] = field(default_factory=list)
    awaited_name: str = ""

    def stage_jobs(self, stage: str) -> list[JobSpec]:
        """The jobs of a stage that are to be submitted."""
        return [job for job, _ in self.jobs if job.stage.name == stage]

    def dependency(self, job: JobSpec, ids: Mapping[tuple[str, int], str]) -> str | None:
        """Value of ``--dependency``; None for a job that may begin at once.

        A stage begins when all of the stage before it succeeded; of arrays that were queued by an
        earlier submit it only waits for the end, since failed tasks of theirs are submitted again.

        Args:
            job: one of these.
            ids: of the jobs before it, by stage and part, or what stands for them.
        """
        conditions = self._after(job.stage.name, ids)
        if job.array and job.array.after is not None:
            # Not instead: an array that was cancelled has ended as well.
            conditions.append(f"afterany:{ids[job.stage.name, job.array.after]}")
        return ",".join(conditions) or None

    def changed_dependencies(self, ids: Mapping[tuple[str, int], str]) -> dict[str, str]:
        """New values of ``--dependency`` of jobs in the queue, by their ids.

        What waits for a stage has to wait for its new jobs too: of tasks that are submitted again
        the first ones failed, which would cancel it.

        Args:
            ids: see :meth:`dependency`.
        """
        changed = {}
        for stage in self.waiting:
            if any(self.stage_jobs(earlier) for earlier in self._waits_for(stage)):
                changed[self.queued[stage][0]] = ",".join(self._after(stage, ids))
        return changed

    def _waits_for(self, stage: str) -> list[str]:
        """The nearest stages before this one that have jobs."""
        return nearest_before(stage, lambda s: self.stage_jobs(s) or self.queued.get(s))

    def _after(self, stage: str, ids: Mapping[tuple[str, int], str]) -> list[str]:
        """Conditions on the stages before this one, of those that have jobs."""
        conditions = []
        for earlier in self._waits_for(stage):
            before = [ids[earlier, other.part] for other in self.stage_jobs(earlier)]
            conditions += [":".join(["afterok", *before])] if before else []
            there = self.queued.get(earlier, [])
            kind = "afterany" if STAGES[earlier].array else "afterok"
            conditions += [":".join([kind, *there])] if there else []
        if self.awaited and stage in AWAIT_TOKENS:
            conditions.append(":".join(["afterok", *self.awaited]))
        return conditions


def record_pasted(run: RunFolder, queue: SlurmQueue) -> None:
    """Record jobs in the queue that came from the text of a dry run: the run has begun."""
    cluster = commands.cluster_name() if queue.jobs else ""
    for stage, job_id in dict.fromkeys((stage, job.array_id) for stage, job in queue.jobs):
        _record(run, stage, job_id, cluster)


def prepare(
    request: Request,
    cluster: SlurmCluster,
    queue: SlurmQueue,
    console: Console,
    elsewhere: bool = False,
) -> Submission:
    """What is to be submitted for the stages that are neither done nor queued.

    Args:
        request: of an existing run folder.
        cluster: of the run.
        queue: what Slurm said of the run.
        console: where to say that jobs are waited for.
        elsewhere: a dry run where Slurm does not answer.

    Raises:
        RequestError: Slurm does not answer, or cannot take the run.
    """
    run, recipe = request.folder, request.recipe
    queue = _settled(queue, console)
    active = [(stage, job) for stage, job in queue.jobs if job.reason not in STUCK]
    if run.stop_request.exists() and active:
        raise RequestError(
            f"run {run.name} is being cancelled: {count_of(len(active), 'job')} still in the "
            f"queue; submit again when they have ended, as cosmos-hpc status shows"
        )
    _make_folders(run, request.stages)
    folders = folders_outside(run, recipe) if cluster.container else []
    pyxis = container_options() if cluster.container and not elsewhere else None
    every = stages_of(run, recipe)
    missing_of = {
        stage.name: missing_tasks(run, recipe, stage, request.tasks)
        for stage in every
        if stage.name in request.stages
    }
    missing_stages = [stage for stage in every if missing_of.get(stage.name)]
    there = commands.mine() if cluster.max_submit is not None and not elsewhere else 0
    rooms = rooms_of(cluster, missing_stages, missing_of, request.spare_jobs, there)
    if left_out := [name for name, missing in missing_of.items() if missing and name not in rooms]:
        limit = f"max_submit={cluster.max_submit}"
        console.say(
            f"  {', '.join(left_out)} left out: {limit} has no room for them; cosmos-hpc retry "
            f"{run.name} {left_out[0]} submits them when the others have ended"
        )
    run_id, code = run.id(), run.code()
    secrets = find_secrets(cluster)
    found = Submission(stuck=[job.id for job in queue.stuck], secrets=secrets)
    source = source_of(run) if missing_of.get(TAKES_OVER) else None
    if source and not is_done(source, source.recipe(), TAKES_OVER):
        found.awaited_name = job_name(source, TAKES_OVER, source.id())
        # Those of a dry run may be queued by the text before its own.
        found.awaited = [f"${PREPARED}"] if request.dry_run else preparing_jobs(run, source)
    for stage in every:
        here = [job for name, job in active if name == stage.name]
        if here:
            # The ids of arrays: one dependency for all tasks.
            ids = dict.fromkeys(job.array_id for job in here)
            found.queued[stage.name] = list(ids)
            if not stage.kind.array and len(here) == 1 and here[0].waits:
                found.waiting.append(stage.name)
        room = rooms.get(stage.name)
        if room is None:
            continue
        busy = {task for job in here for task in tasks_of(job, stage.tasks)}
        missing = [task for task in missing_of[stage.name] if task not in busy]
        for job in jobs_of(stage, missing, room) if missing else []:
            script = render(job, run, cluster, run_id, code, folders, pyxis, secrets)
            found.jobs.append((job, script))
    return found


def _settled(queue: SlurmQueue, console: Console) -> SlurmQueue:
    """The queue when jobs that are ending have ended: whether they come back is known only then.

    Raises:
        RequestError: Slurm does not answer any more.
    """
    deadline = time.monotonic() + _ENDING_SECONDS
    told = False
    while ending := [job.id for _, job in queue.jobs if job.state == "COMPLETING"]:
        if queue.run is None or time.monotonic() > deadline:
            break
        if not told:
            console.say(f"  waiting for jobs that are ending: {', '.join(ending)}")
            told = True
        time.sleep(_POLL_SECONDS)
        queue = read_queue(queue.run)
        if queue.problem:
            raise RequestError(queue.problem)
    return queue


def folders_outside(run: RunFolder, recipe: Recipe) -> list[str]:
    """What the stages read outside the run folder, as it is named there and without links.

    Raises:
        RequestError: a folder of the Hub's files cannot be made.
    """
    wanted = [*run.data.folders(), *sources_of(recipe).values(), *hub.folders(recipe).values()]
    # The folder that holds both runs: no link leads from one mount to another.
    wanted += [str(run.path.parent)] if source_of(run) else []
    named = [os.path.abspath(path) for path in wanted if path and Path(path).exists()]
    there = [*named, *map(os.path.realpath, named)]
    folders = [path if Path(path).is_dir() else str(Path(path).parent) for path in there]
    # The root folder cannot be mounted; the profile names the folders below it that are needed.
    return [folder for folder in dict.fromkeys(folders) if folder != "/"]


def _make_folders(run: RunFolder, names: Sequence[str]) -> None:
    """Where jobs write from their first moment on: Slurm itself makes no folder for a log."""
    notes = (run.attempts("x", 0), run.task_stop("x", 0), run.error("x", 0))
    for folder in (*(note.parent for note in notes), *(run.logs / name for name in names)):
        folder.mkdir(parents=True, exist_ok=True)


def scripts_folder(run: RunFolder) -> Path:
    """Scripts of the jobs of a run, as they were submitted last."""
    return run.path / "scripts"


def write_scripts(run: RunFolder, submission: Submission) -> dict[str, Path]:
    """Write the scripts into the run folder; returns them by name of the job."""
    scripts = {}
    for job, text in submission.jobs:
        scripts[job.name] = script_path(scripts_folder(run), job)
        files.write_atomic(scripts[job.name], text)
    return scripts


def script_path(folder: Path, job: JobSpec) -> Path:
    """Where a job's script goes."""
    return folder / f"{job.name}_sbatch.sh"


def submit(run: RunFolder, cluster: SlurmCluster, submission: Submission, console: Console) -> None:
    """Submit jobs, all or none of them.

    Raises:
        RequestError: Slurm does not take one of them; those before it were cancelled.
    """
    if not submission.jobs:
        console.say("  nothing is missing that is not in the queue")
        return
    check_room(cluster, [job for job, _ in submission.jobs], len(submission.stuck))
    if note := submission.secrets.note():
        console.say(f"  {note}")
    scripts = write_scripts(run, submission)
    _ask_slurm(cluster, submission, scripts, console)
    run.stop_request.unlink(missing_ok=True)
    commands.cancel(submission.stuck)
    ids: dict[tuple[str, int], str] = {}
    run_id, cluster_name = run.id(), commands.cluster_name()
    before = {job for jobs in submission.queued.values() for job in jobs}
    try:
        for job, _ in submission.jobs:
            dependency = submission.dependency(job, ids)
            flags = [f"--dependency={dependency}"] if dependency else []
            name = job_name(run, job.stage.name, run_id)
            known = {*ids.values(), *before}
            job_id = commands.sbatch(scripts[job.name], flags, name, known)
            ids[job.stage.name, job.part] = job_id
            if job.stage.name == "train":
                check_memory(cluster, job, job_id, host_bytes(run.recipe()))
    except BaseException:
        stages = dict.fromkeys(job.stage.name for job, _ in submission.jobs)
        names = [job_name(run, stage, run_id) for stage in stages]
        _take_back(list(ids.values()), names, before, console)
        raise
    for job, _ in submission.jobs:
        _record(run, job.stage.name, ids[job.stage.name, job.part], cluster_name)
    _say_submitted(submission, ids, console)
    for job_id, dependency in submission.changed_dependencies(ids).items():
        reason = commands.depend(job_id, dependency)
        told = f"could not be told: {reason}; retry when it has ended" if reason else "waits too"
        console.say(f"  in the queue job {job_id} {told}")


def _take_back(
    ids: Sequence[str], names: Sequence[str], before: Collection[str], console: Console
) -> None:
    """Cancel the jobs of a submission that failed half-way.

    Args:
        ids: of those that Slurm has told.
        names: of all of them: an sbatch that was interrupted, took too long or failed after all may
            have queued one more.
        before: ids of jobs of these names that are to stay.
        console: where to say what is left in the queue.
    """
    found = list(ids)
    try:
        time.sleep(_POLL_SECONDS)  # Slurm may be taking it just now
        there = {job.array_id for job in commands.queued(names) if job.active}
        found += sorted(there.difference(found, before), key=int)
        commands.cancel(found)
    except RequestError as e:
        jobs = f"scancel {' '.join(found)}" if found else f"scancel --name={','.join(names)}"
        console.say(f"  jobs of this submission may be in the queue still: {e}; {jobs} ends them")


def _say_submitted(
    submission: Submission, ids: Mapping[tuple[str, int], str], console: Console
) -> None:
    for stage in dict.fromkeys(job.stage.name for job, _ in submission.jobs):
        jobs = submission.stage_jobs(stage)
        singles = [ids[stage, job.part] for job in jobs if job.array and job.array.single]
        if len(singles) > 1:
            console.say(f"  {stage:<11} {len(singles)} jobs, {singles[0]} to {singles[-1]}")
            continue
        for job in jobs:
            tasks = f", {count_of(len(job.array.indices), 'array task')}" if job.array else ""
            console.say(f"  {job.name:<11} job {ids[stage, job.part]}{tasks}")


def _ask_slurm(
    cluster: SlurmCluster, submission: Submission, scripts: Mapping[str, Path], console: Console
) -> None:
    """Have Slurm look at one script of each stage before anything is queued."""
    asked: dict[str, JobSpec] = {}
    for job, _ in submission.jobs:
        asked.setdefault(job.stage.name, job)
    for stage, job in asked.items():
        script = scripts[job.name]
        reason = commands.job_refusal(str(script))
        if reason and (awaited := commands.awaited_nodes(cluster.partition(job.gpus), reason)):
            console.say(f"  {stage:<11} {awaited}")
        elif reason:
            raise RequestError(
                f"Slurm would not take the job of stage {stage}: {commands.with_remedy(reason)}; "
                f"its script is {script}, and cosmos-hpc cluster check says more. Nothing was "
                f"submitted"
            )


def _record(run: RunFolder, stage: str, job_id: str, cluster: str) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    row = {"stage": stage, "job": job_id, "cluster": cluster, "time": now}
    files.append_jsonl(run.jobs, row)
