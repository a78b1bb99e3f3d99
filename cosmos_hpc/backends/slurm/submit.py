"""Submits the stages of a run to a Slurm cluster: what is missing and not queued, in order."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cosmos_hpc.backends.slurm import commands as slurm
from cosmos_hpc.backends.slurm import job_commands as slurm_jobs
from cosmos_hpc.backends.slurm.check import problems
from cosmos_hpc.backends.slurm.job_commands import SlurmJob
from cosmos_hpc.backends.slurm.jobs import Job, jobs_of
from cosmos_hpc.backends.slurm.script import job_name, read_array_comment, render
from cosmos_hpc.config.clusters import MAX_SINGLE_JOBS, Cluster, SlurmCluster, read_cluster
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.hub import cache as hub
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import STAGES, missing_tasks, stages_of
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console
from cosmos_hpc.utils.settings import flatten

_POLL_SECONDS = 1.0
#: Slurm's reasons for jobs that will never begin: what they waited for has failed, or their node
#: did not take them, after which Slurm holds them.
STUCK = (
    "DependencyNeverSatisfied",
    "launch failed requeued held",
    "user env retrieval failed requeued held",
)


@dataclass
class Submission:
    """Jobs of a run that are to be submitted, in order, and what is in the queue already.

    Attributes:
        jobs: with the script of each.
        queued: ids of jobs in the queue, by stage.
        waiting: stages of one job that is in the queue and has not begun.
        stuck: ids of jobs in the queue that will never begin.
    """

    jobs: list[tuple[Job, str]] = field(default_factory=list)
    queued: dict[str, list[str]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    def stage_jobs(self, stage: str) -> list[Job]:
        """The jobs of a stage that are to be submitted."""
        return [job for job, _ in self.jobs if job.stage.name == stage]

    def dependency(self, job: Job, ids: Mapping[tuple[str, int], str]) -> str | None:
        """Value of ``--dependency``; None for a job that may begin at once.

        A stage begins when all of the stage before it succeeded; of arrays that were queued by an
        earlier submit it only waits for the end, since failed tasks of theirs are submitted anew.

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

        What waits for a stage has to wait for its new jobs too: of tasks that are submitted anew
        the first ones failed, which would cancel it.

        Args:
            ids: see :meth:`dependency`.
        """
        changed = {}
        for stage in self.waiting:
            before = [s for s in STAGES[: STAGES.index(stage)] if self._has(s)]
            if before and self.stage_jobs(before[-1]):
                changed[self.queued[stage][0]] = ",".join(self._after(stage, ids))
        return changed

    def _has(self, stage: str) -> bool:
        return bool(self.stage_jobs(stage) or self.queued.get(stage))

    def _after(self, stage: str, ids: Mapping[tuple[str, int], str]) -> list[str]:
        """Conditions on the stage before this one, of those that have jobs."""
        for earlier in reversed(STAGES[: STAGES.index(stage)]):
            conditions = []
            before = [ids[earlier, other.part] for other in self.stage_jobs(earlier)]
            conditions += [":".join(["afterok", *before])] if before else []
            there = self.queued.get(earlier, [])
            kind = "afterany" if earlier == "preprocess" else "afterok"
            conditions += [":".join([kind, *there])] if there else []
            if conditions:
                return conditions
        return []


def names_of(run: RunFolder) -> dict[str, str]:
    """Stages by the names of their jobs in the queue."""
    run_id = str(files.read_json(run.info)["id"])
    return {job_name(run, stage, run_id): stage for stage in STAGES}


def active_jobs(run: RunFolder) -> list[tuple[str, SlurmJob]]:
    """Jobs of the run in the queue, each with its stage.

    Raises:
        RequestError: Slurm does not answer, or would not show them to this user.
    """
    names = names_of(run)
    found = [(names[job.name], job) for job in slurm_jobs.queued(list(names)) if job.active]
    mine = os.geteuid() in (0, run.info.stat().st_uid)
    if not found and not mine and slurm.hides_jobs_of_others():
        raise RequestError(
            f"run {run.name} was submitted by somebody else, and this cluster shows nobody the "
            f"jobs of others"
        )
    return found


def check_cluster(cluster: SlurmCluster) -> None:
    """Refuse what a cluster cannot do, as far as that is known without asking about a job.

    Raises:
        RequestError: names what the profile asks for in vain; or Slurm does not answer.
    """
    for problem in problems(cluster):
        raise RequestError(f"cluster {cluster.name}: {problem}. Nothing was submitted")


def record_pasted(run: RunFolder) -> None:
    """Note jobs in the queue that came from the text of a dry run: the run has begun."""
    if not run.begun():
        for stage, job_id in dict.fromkeys((stage, job.whole) for stage, job in active_jobs(run)):
            _record(run, stage, job_id)


def tasks_of(job: SlurmJob, total: int) -> range:
    """Tasks of its stage that a job in the queue works on, of so many in all."""
    array = read_array_comment(job.comment)
    if array is None:
        return range(job.index, job.index + 1)
    return range(array[0] + job.index, total, array[1])


def prepare(
    run: RunFolder,
    recipe: Recipe,
    cluster: SlurmCluster,
    names: Sequence[str],
    only: Sequence[int] | None = None,
) -> Submission:
    """What is to be submitted for the stages that are neither done nor queued.

    Args:
        run: an existing run folder.
        recipe, cluster: of the run.
        names: of stages.
        only: tasks to submit of those; None: all that are missing.

    Raises:
        RequestError: Slurm does not answer, or cannot take the run.
    """
    there = active_jobs(run)
    active = [(stage, job) for stage, job in there if job.reason not in STUCK]
    if run.stop_request.exists() and active:
        raise RequestError(
            f"run {run.name} is being cancelled: {len(active)} jobs are in the queue still; "
            f"submit again when they have ended, as cosmos-hpc status shows"
        )
    run_id = str(files.read_json(run.info)["id"])
    _make_folders(run, names)
    folders = _folders(run, recipe) if cluster.container else []
    pyxis = slurm.container_options() if cluster.container else None
    room = _room(cluster)
    found = Submission(stuck=[job.id for _, job in there if job.reason in STUCK])
    for stage in stages_of(run, recipe):
        here = [job for name, job in active if name == stage.name]
        if here:
            # The ids of whole arrays: one dependency for all tasks.
            ids = dict.fromkeys(job.whole for job in here)
            found.queued[stage.name] = list(ids)
            if stage.name != "preprocess" and len(here) == 1 and here[0].waits:
                found.waiting.append(stage.name)
        if stage.name not in names:
            continue
        busy = {task for job in here for task in tasks_of(job, stage.tasks)}
        missing = [
            task
            for task in missing_tasks(run, recipe, stage)
            if task not in busy and (only is None or task in only)
        ]
        for job in jobs_of(stage, missing, room) if missing else []:
            script = render(job, run, cluster, run_id, run.code(), folders, pyxis)
            found.jobs.append((job, script))
    return found


def _room(cluster: SlurmCluster) -> SlurmCluster:
    """The cluster with a limit of jobs that leaves out those in the queue already."""
    if cluster.max_submit is None:
        return cluster
    # One array task at least: what Slurm then does not take, it refuses whole.
    left = max(cluster.max_submit - slurm_jobs.mine(), MAX_SINGLE_JOBS + 1)
    return cluster.model_copy(update={"max_submit": left})


def _check_room(cluster: SlurmCluster, submission: Submission) -> None:
    """Refuse more jobs than the limit leaves room for, before Slurm does so halfway."""
    if cluster.max_submit is None:
        return
    needed = sum(len(job.array.indices) if job.array else 1 for job, _ in submission.jobs)
    there = slurm_jobs.mine() - len(submission.stuck)
    if there + needed > cluster.max_submit:
        raise RequestError(
            f"you have {there} jobs in the queue, and max_submit={cluster.max_submit} leaves no "
            f"room for {needed} more; submit again when some have ended. Nothing was submitted"
        )


def _folders(run: RunFolder, recipe: Recipe) -> list[str]:
    """What the stages read outside the run folder, as it is named there and without links.

    Raises:
        RequestError: a folder of the Hub's files cannot be made.
    """
    data, train = recipe.data, recipe.train
    sources = [str(data.input), data.tokenizer, data.text_encoder, train.init_from]
    wanted = [*run.video_folders(), *sources, *hub.folders(recipe).values()]
    named = [os.path.abspath(path) for path in wanted if path and Path(path).exists()]
    there = [*named, *map(os.path.realpath, named)]
    folders = [path if Path(path).is_dir() else str(Path(path).parent) for path in there]
    # The whole file system cannot be mounted; what is of it is up to the profile.
    return [folder for folder in dict.fromkeys(folders) if folder != "/"]


def _make_folders(run: RunFolder, names: Sequence[str]) -> None:
    """Where jobs write from their first moment on: Slurm itself makes no folder for a log."""
    notes = (run.attempts("x", 0), run.task_stop("x", 0), run.error("x", 0))
    for folder in (*(note.parent for note in notes), *(run.logs / name for name in names)):
        folder.mkdir(parents=True, exist_ok=True)


def write_scripts(run: RunFolder, submission: Submission) -> dict[str, Path]:
    """Write the scripts into the run folder; returns them by name of the job."""
    scripts = {}
    for job, text in submission.jobs:
        scripts[job.name] = script_path(run.scripts, job)
        files.write_atomic(scripts[job.name], text)
    return scripts


def script_path(folder: Path, job: Job) -> Path:
    """Where a job's script goes; NeMo-Run wants the end of the name."""
    return folder / f"{job.name}_sbatch.sh"


def submit(run: RunFolder, cluster: SlurmCluster, submission: Submission, console: Console) -> None:
    """Submit jobs, all or none of them.

    Raises:
        RequestError: Slurm does not take one of them; those before it were cancelled.
    """
    if not submission.jobs:
        console.say("  nothing is missing that is not in the queue")
        return
    _check_room(cluster, submission)
    scripts = write_scripts(run, submission)
    _ask_slurm(submission, scripts)
    run.stop_request.unlink(missing_ok=True)
    slurm_jobs.cancel(submission.stuck)
    ids: dict[tuple[str, int], str] = {}
    try:
        for job, _ in submission.jobs:
            dependency = submission.dependency(job, ids)
            flags = [f"--dependency={dependency}"] if dependency else []
            ids[job.stage.name, job.part] = _submit(job, cluster, scripts[job.name], flags)
    except BaseException:
        slurm_jobs.cancel(list(ids.values()))
        raise
    for job, _ in submission.jobs:
        job_id = ids[job.stage.name, job.part]
        _record(run, job.stage.name, job_id)
        tasks = f", {len(job.array.indices)} array tasks" if job.array else ""
        console.say(f"  {job.name:<11} job {job_id}{tasks}")
    for job_id, dependency in submission.changed_dependencies(ids).items():
        reason = slurm_jobs.depend(job_id, dependency)
        told = f"could not be told: {reason}; retry when it has ended" if reason else "waits too"
        console.say(f"  in the queue job {job_id} {told}")


def _submit(job: Job, cluster: SlurmCluster, script: Path, flags: list[str]) -> str:
    # Each brings in its library only when it is needed.
    if job.array:
        from cosmos_hpc.backends.submitit_arrays import submit_array

        return submit_array(script, flags)
    from cosmos_hpc.backends.experiments import submit_slurm

    return submit_slurm(job, cluster, script, flags)


def _ask_slurm(submission: Submission, scripts: Mapping[str, Path]) -> None:
    """Have Slurm look at one script of each stage before anything is queued."""
    asked: dict[str, Path] = {}
    for job, _ in submission.jobs:
        asked.setdefault(job.stage.name, scripts[job.name])
    for stage, script in asked.items():
        reason = slurm.refusal(str(script))
        if reason:
            raise RequestError(
                f"Slurm would not take the job of stage {stage}: {reason}; its script is {script}, "
                f"and cosmos-hpc cluster check says more. Nothing was submitted"
            )


def _record(run: RunFolder, stage: str, job_id: str) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    row = {"stage": stage, "job": job_id, "time": now}
    files.append_jsonl(run.jobs, row)


def cancel(run: RunFolder, now: bool = False) -> int:
    """Take what is queued out of the queue, ask what runs to stop, and wait until it has.

    Args:
        now: kill what runs.

    Returns:
        How many jobs and array tasks were in the queue.

    Raises:
        RequestError: Slurm does not answer.
    """
    found = [job for _, job in active_jobs(run)]
    if not found:
        return 0
    files.write_atomic(run.stop_request, "")
    while left := [job for _, job in active_jobs(run)]:
        # A job may have queued itself again before it saw the request. Whole arrays: each task
        # that is named by itself becomes a job of its own to Slurm, which are limited.
        chosen = dict.fromkeys(job.whole for job in left if now or job.waits)
        slurm_jobs.cancel(list(chosen), only_waiting=not now)
        time.sleep(_POLL_SECONDS)
    return len(found)


def check_queued(run: RunFolder, recipe: Recipe, cluster: Cluster, dry_run: bool) -> None:
    """Refuse to change under jobs in the queue what they are going to read.

    Args:
        run: an existing run folder.
        recipe, cluster: of the request.
        dry_run: nothing is going to be started.

    Raises:
        RequestError: jobs of the run are in the queue, and the request is for another cluster or
            other ranks than they have, or is a dry run of other settings; or Slurm does not answer.
    """
    old = read_cluster(run.cluster_file)
    if not isinstance(old, SlurmCluster):
        return
    if not isinstance(cluster, SlurmCluster) and shutil.which("squeue") is None:
        return  # a run that was moved here
    stages = {stage for stage, _ in active_jobs(run)}
    if not stages:
        return
    what = f"run {run.name} has jobs in the queue of cluster {old.name}"
    then = f"wait for them, or cosmos-hpc cancel {run.name} first"
    if not isinstance(cluster, SlurmCluster):
        raise RequestError(f"{what}, and this request is for {cluster.name}; {then}")
    before = flatten(run.recipe().model_dump(mode="json"))
    after = flatten(recipe.model_dump(mode="json"))
    # The jobs run the package as it was then, which refuses settings that it does not know.
    read = flatten((files.read_json(run.spec(min(stages))) or {"recipe": after})["recipe"])
    if unknown := sorted(after.keys() - read.keys()):
        raise RequestError(
            f"{what}, of an older cosmos-hpc that does not know {unknown[0]}; {then}"
        )
    differ = [key for key in after if before.get(key) != after[key]]
    fixed = [key for key in differ if dry_run or (key == "train.gpus" and "train" in stages)]
    if fixed:
        key = fixed[0]
        raise RequestError(f"{what}, with {key}={before.get(key)}, not {after[key]}; {then}")
