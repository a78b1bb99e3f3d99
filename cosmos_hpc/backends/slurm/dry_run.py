"""What a submit would do, as shell text that does the same when it is pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

from cosmos_hpc.backends.base import head_of_dry_run
from cosmos_hpc.backends.slurm.jobs import JobSpec
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.backends.slurm.submit import PREPARED, Submission, script_path
from cosmos_hpc.planning.plans import Plan
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files

_END = "END_OF_SCRIPT"
#: sbatch reads these variables as flags, and inside a job they are that job's. What a person has
#: set for squeue would hide jobs.
_CLEAN = (
    "set -e",
    'for name in "${!SLURM_@}" "${!SBATCH_@}" "${!SQUEUE_@}"; do',
    '    case "$name" in SLURM_CONF*) ;; *) unset "$name" ;; esac',
    "done",
)


def text(
    plan: Plan, run: RunFolder, submission: Submission, cluster: SlurmCluster, silence: str
) -> str:
    """The plan as comments, and commands that submit each script with what it waits for.

    Args:
        plan, run, submission, cluster: what would be submitted, and where.
        silence: why Slurm does not answer here; empty where it does.
    """
    head = head_of_dry_run(plan, run, _unchecked(cluster, silence))
    lines = [*head, "(", *_before(run, submission)]
    for job, script in submission.jobs:
        lines += [f"{_variable(job)}=$({_sbatch(job, submission)} <<'{_END}'"]
        lines += [*script.splitlines(), _END, ")"]
    return "\n".join([*lines, *_changed(submission), _said(submission), ")"])


def write(
    plan: Plan,
    run: RunFolder,
    submission: Submission,
    cluster: SlurmCluster,
    folder: Path,
    silence: str,
) -> list[Path]:
    """Write each script, and ``submit.sh`` that submits them, into a folder; returns the files.

    The other arguments are those of :func:`text`.
    """
    head = head_of_dry_run(plan, run, _unchecked(cluster, silence))
    lines = ["#!/bin/bash", *head, *_before(run, submission)]
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


def _unchecked(cluster: SlurmCluster, silence: str) -> str:
    """What of a profile only its cluster can say, where it cannot be asked."""
    if not silence:
        return ""
    lines = ["partitions and their limits", "account and qos", "jobs in the queue"]
    lines += ["the disk of cluster.runs", "HF_HOME"]
    lines.append(f"MaxArraySize (max_array_size={cluster.max_array_size})")
    lines.append(f"container={cluster.container}" if cluster.container else "the nodes' libraries")
    return (
        f"Not checked, as {silence}: {', '.join(lines)}; cosmos-hpc cluster check does so on a "
        f"login node."
    )


def _variable(job: JobSpec) -> str:
    return job.name.replace("-", "_")


def _before(run: RunFolder, submission: Submission) -> list[str]:
    lines = [*_CLEAN, f"rm -f -- {shlex.quote(str(run.stop_request))}"]
    if submission.awaited_name:
        name = shlex.quote(f"--name={submission.awaited_name}")
        # Some sites print a greeting as well.
        ids = f"squeue --all --noheader --format=%A {name} | grep -xE '[0-9]+' | sort -u"
        lines += [
            f"{PREPARED}=$({ids} | paste -s -d :)",
            f': "${{{PREPARED}:?the run that prepares the tokens has to be submitted first}}"',
        ]
    return lines


def _ids(submission: Submission) -> dict[tuple[str, int], str]:
    return {(j.stage.name, j.part): f"${{{_variable(j)}%;*}}" for j, _ in submission.jobs}


def _changed(submission: Submission) -> list[str]:
    changed = submission.changed_dependencies(_ids(submission))
    return [f'scontrol update JobId={job} Dependency="{on}"' for job, on in changed.items()]


def _sbatch(job: JobSpec, submission: Submission) -> str:
    dependency = submission.dependency(job, _ids(submission))
    return "sbatch --parsable" + (f' --dependency="{dependency}"' if dependency else "")


def _said(submission: Submission) -> str:
    ids = " ".join(f"${_variable(job)}" for job, _ in submission.jobs)
    return f'echo "submitted {ids}"' if ids else "# Nothing is missing that is not in the queue."
