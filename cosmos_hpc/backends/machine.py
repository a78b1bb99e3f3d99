"""Runs the stages of a run on this machine, in order, and shows their progress."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from cosmos_hpc.backends.docker import Containers, containers_of
from cosmos_hpc.backends.docker_arrays import DockerArray
from cosmos_hpc.backends.experiments import DockerJob, LocalJob
from cosmos_hpc.backends.submitit_arrays import LocalArray
from cosmos_hpc.config.clusters import DockerCluster, MachineCluster
from cosmos_hpc.config.gpus import visible_gpus
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import Stage, missing_tasks, stages_of
from cosmos_hpc.runs.status import stage_progress
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console

_POLL_SECONDS = 0.3


def run_stages(
    run: RunFolder,
    recipe: Recipe,
    cluster: MachineCluster,
    names: Sequence[str],
    console: Console,
    only: Sequence[int] | None = None,
) -> None:
    """Run those of the named stages that are not done, in processes or in containers.

    Args:
        only: tasks to run of those; None: all that are missing.

    Raises:
        RequestError: containers cannot be had; nothing was started.
        WorkError: a stage failed; the message names its reasons and logs.
        KeyboardInterrupt: passed on after the running tasks have been stopped.
    """
    containers = containers_of(run, recipe, cluster) if isinstance(cluster, DockerCluster) else None
    # Of an earlier attempt; this one is to go on.
    run.stop_request.unlink(missing_ok=True)
    for stage in stages_of(run, recipe):
        if stage.name not in names:
            continue
        missing = missing_tasks(run, recipe, stage, only)
        if not missing:
            console.say(
                f"  {stage.name:<11} done before, {stage_progress(run, stage)}".rstrip(", ")
            )
            continue
        console.begin(stage.name)
        _mention_others(run, stage, missing, console)
        for task in missing:
            run.error(stage.name, task).unlink(missing_ok=True)
        gpus = visible_gpus()[: cluster.gpus]
        if stage.name == "preprocess":
            _run_array(run, stage, missing, cluster.parallel, gpus, containers, console)
        else:
            _run_job(run, stage, gpus[: stage.ranks], containers, console)
        still = missing_tasks(run, recipe, stage, only)
        if still and run.stop_request.exists():
            console.end(stage.name, "stopped", stage_progress(run, stage))
            raise WorkError("stopped on request; the same command goes on from here")
        if still:
            _note_silent_deaths(run, stage, still)
            console.end(stage.name, "failed", stage_progress(run, stage))
            raise WorkError(_reasons(run, stage, still))
        console.end(stage.name, "done", stage_progress(run, stage))


def _mention_others(run: RunFolder, stage: Stage, tasks: list[int], console: Console) -> None:
    """Say who still works on tasks: workers that a killed submit left behind."""
    for task in tasks:
        holder = files.lock_holder(run.task_lock(stage.name, task))
        if holder:
            which = f" task {task}" if stage.tasks > 1 else ""
            console.say(f"  {stage.name}{which} is still being worked on by {holder}; waiting")


def _run_array(
    run: RunFolder,
    stage: Stage,
    tasks: list[int],
    parallel: int,
    gpus: list[str],
    containers: Containers | None,
    console: Console,
) -> None:
    # Parallel tasks share the cores; without this every one would start a thread for each.
    threads = max(1, len(os.sched_getaffinity(0)) // parallel)
    environment = {"OMP_NUM_THREADS": str(threads)}
    array: LocalArray | DockerArray
    if containers:
        array = DockerArray(run, stage, environment, gpus, containers)
    else:
        environment["COSMOS_HPC_DIE_WITH_PARENT"] = "1"
        array = LocalArray(run, stage, environment, gpus)
    queue = list(reversed(tasks))
    try:
        while queue or array.running:
            if run.stop_request.exists():
                queue.clear()
            while queue and len(array.running) < parallel:
                task = queue.pop()
                note_log(run, stage, task, array.start(task))
            time.sleep(_POLL_SECONDS)
            array.forget_ended()
            if console.due():
                console.progress(stage.name, stage_progress(run, stage))
    finally:
        stopped = array.running
        array.cancel()
        _absolve(run, stopped)


def _absolve(run: RunFolder, shards: list[int]) -> None:
    """Their workers were stopped by us: no video is to blame that one had to be killed."""
    from cosmos_hpc.runs.in_hand import absolve

    for shard in shards:
        absolve(run.in_hand(shard))


def _run_job(
    run: RunFolder, stage: Stage, gpus: list[str], containers: Containers | None, console: Console
) -> None:
    job: LocalJob
    if containers:
        # A container sees only the GPUs that it is given.
        job = DockerJob(run, stage, 0, containers, gpus, {})
    else:
        job = LocalJob(run, stage, {"CUDA_VISIBLE_DEVICES": ",".join(gpus)})
    with job:
        noted = False
        try:
            while job.running():
                time.sleep(_POLL_SECONDS)
                if not noted and job.log:
                    note_log(run, stage, 0, job.log)
                    noted = True
                if console.due() and (text := stage_progress(run, stage)):
                    console.progress(stage.name, text)
        finally:
            job.cancel()
        if not noted and job.log:
            note_log(run, stage, 0, job.log)


def note_log(run: RunFolder, stage: Stage, task: int, path: Path) -> None:
    """Remember where an attempt's log is, relative to the run folder."""
    row = {"stage": stage.name, "task": task, "log": str(path.relative_to(run.path))}
    files.append_jsonl(run.log_index, {**row, "time": round(time.time(), 3)})


def _latest_logs(run: RunFolder, stage: Stage) -> dict[int, Path]:
    rows = files.read_jsonl(run.log_index)
    return {row["task"]: run.path / row["log"] for row in rows if row["stage"] == stage.name}


def _note_silent_deaths(run: RunFolder, stage: Stage, tasks: list[int]) -> None:
    """Leave a reason for tasks that could not: they were killed."""
    logs = _latest_logs(run, stage)
    for task in tasks:
        if not run.error(stage.name, task).exists():
            reason = "ended without a reason, perhaps killed or out of memory"
            files.write_atomic(run.error(stage.name, task), reason + _tail(logs.get(task)) + "\n")


def _reasons(run: RunFolder, stage: Stage, tasks: list[int]) -> str:
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
