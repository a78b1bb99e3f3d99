"""What a submit would do, as shell text that does the same when it is pasted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cosmos_hpc.backends.docker import Containers, containers_of, docker_command
from cosmos_hpc.backends.slurm.jobs import Job
from cosmos_hpc.backends.slurm.submit import Submission, script_path
from cosmos_hpc.config.clusters import DockerCluster, MachineCluster
from cosmos_hpc.config.gpus import visible_gpus
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.planning.plans import Plan
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import Stage, missing_tasks, stages_of, task_command
from cosmos_hpc.utils import files

_END = "END_OF_SCRIPT"
#: sbatch reads these variables as flags, and inside a job they are that job's.
_CLEAN = (
    "set -e",
    'for name in "${!SLURM_@}" "${!SBATCH_@}"; do',
    '    case "$name" in SLURM_CONF*) ;; *) unset "$name" ;; esac',
    "done",
)


def slurm_text(plan: Plan, run: RunFolder, submission: Submission) -> str:
    """The plan as comments, and commands that submit each script with what it waits for."""
    lines = [*_head(plan, run), "(", *_CLEAN, _forget_cancel(run)]
    for job, script in submission.jobs:
        lines += [f"{_variable(job)}=$({_sbatch(job, submission)} <<'{_END}'"]
        lines += [*script.splitlines(), _END, ")"]
    return "\n".join([*lines, *_changed(submission), _said(submission), ")"])


def write_slurm(plan: Plan, run: RunFolder, submission: Submission, folder: Path) -> list[Path]:
    """Write each script, and ``submit.sh`` that submits them; returns the files."""
    lines = ["#!/bin/bash", *_head(plan, run), *_CLEAN, _forget_cancel(run)]
    written = []
    for job, script in submission.jobs:
        path = script_path(folder, job).absolute()
        files.write_atomic(path, script)
        written.append(path)
        command = f"{_sbatch(job, submission)} {shlex.quote(str(path))}"
        lines.append(f"{_variable(job)}=$({command})")
    lines += [*_changed(submission), _said(submission)]
    files.write_atomic(folder.absolute() / "submit.sh", "\n".join(lines) + "\n")
    return [*written, folder / "submit.sh"]


def machine_text(
    plan: Plan,
    run: RunFolder,
    recipe: Recipe,
    cluster: MachineCluster,
    names: Sequence[str],
    only: Sequence[int] | None = None,
) -> str:
    """The plan as comments, and commands of the tasks that are missing, of all or ``only`` some."""
    lines = _head(plan, run)
    containers = containers_of(run, recipe, cluster) if isinstance(cluster, DockerCluster) else None
    gpus = visible_gpus()[: cluster.gpus]
    for stage in stages_of(run, recipe):
        if stage.name in names:
            tasks = missing_tasks(run, recipe, stage, only)
            commands = [_local_command(run, stage, task, containers) for task in tasks]
            if containers:
                used = gpus[: stage.ranks]
                commands = [docker_command(containers, used, command) for command in commands]
            lines += [shlex.join(command) for command in commands]
    return "\n".join(lines)


def _local_command(
    run: RunFolder, stage: Stage, task: int, containers: Containers | None
) -> list[str]:
    python, *script = task_command(run, stage, task)
    if containers:
        python = containers.python
    if stage.ranks == 1:
        return [python, *script]
    flags = ["--standalone", f"--nproc-per-node={stage.ranks}"]
    return [python, "-m", "torch.distributed.run", *flags, *script]


def _head(plan: Plan, run: RunFolder) -> list[str]:
    return [
        *(f"# {line}" for line in plan.render().splitlines()),
        f"# The run folder {str(run.path)!r} is prepared; nothing was started.",
        "# These commands do what submit does.",
    ]


def _variable(job: Job) -> str:
    return job.name.replace("-", "_")


def _forget_cancel(run: RunFolder) -> str:
    return f"rm -f -- {shlex.quote(str(run.stop_request))}"


def _ids(submission: Submission) -> dict[tuple[str, int], str]:
    return {(j.stage.name, j.part): f"${{{_variable(j)}%;*}}" for j, _ in submission.jobs}


def _changed(submission: Submission) -> list[str]:
    changed = submission.changed_dependencies(_ids(submission))
    return [f'scontrol update JobId={job} Dependency="{on}"' for job, on in changed.items()]


def _sbatch(job: Job, submission: Submission) -> str:
    dependency = submission.dependency(job, _ids(submission))
    return "sbatch --parsable" + (f' --dependency="{dependency}"' if dependency else "")


def _said(submission: Submission) -> str:
    ids = " ".join(f"${_variable(job)}" for job, _ in submission.jobs)
    return f'echo "submitted {ids}"' if ids else "# Nothing is missing that is not in the queue."
