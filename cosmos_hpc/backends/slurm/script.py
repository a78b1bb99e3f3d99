"""Complete sbatch scripts of jobs, as text that a person can read and submit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from cosmos_hpc.backends.slurm import containers
from cosmos_hpc.backends.slurm.commands import placement
from cosmos_hpc.backends.slurm.jobs import Array, Job
from cosmos_hpc.config.clusters import SlurmCluster
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import STOP_VARIABLE, RunFolder
from cosmos_hpc.runs.stages import task_script

#: What a shell needs of the submitting one; the profile's names come on top.
_BASIC_VARIABLES = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG")
#: What Slurm's ``--output`` or bash would not take as it is.
_UNSAFE_PATH = re.compile(r"[%\\\x00-\x1f\x7f]")

# How every job works on its tasks. What it needs to know stands in variables before it.
_TAIL = r"""
# One line when work on a task begins and one when it ends: status and logs read them.
note() {
    printf '{"%s": %s, "job": "%s", "restart": %s, "node": "%s", "log": "%s", "why": "%s"}\n' \
        "$1" "$(date +%s)" "$job" "${SLURM_RESTART_COUNT:-0}" "${SLURMD_NODENAME:-}" "$log" "$2" \
        >>"$attempts"
}

# Slurm warns before the time limit (USR1) and some preemptions (TERM). The worker finds the file,
# stops at the next safe point, and this job queues itself again. Slurm warns once: a task that was
# done all the same must not be followed by another.
warned=
trap 'interrupted=yes; warned=yes; : >"${COSMOS_HPC_STOP:-/dev/null}"' USR1 TERM

give_up() {
    note end "$1"
    printf '%s\n' "$2" >"$reason.tmp" && mv "$reason.tmp" "$reason"
    return 1
}

# How Slurm sees this job; it may be too busy to say so at once.
state_in_queue() {
    for _ in 1 2 3 4; do
        squeue --noheader --jobs="$job" --format=%T && return
        sleep 5
    done
    echo UNKNOWN
}

go_on() {
    case "$(state_in_queue)" in
        COMPLETING | CANCELLED) # by scancel: not to come back
            note end cancelled
            return 75
            ;;
        PENDING) # Slurm has queued it again already
            note end "$1"
            return 75
            ;;
        UNKNOWN) # perhaps cancelled
            give_up "$1" "$2, and Slurm did not say whether it is to be queued again"
            return
            ;;
    esac
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$requeues" ]; then
        give_up "$1" "$2, and requeues=$requeues times it was started again already"
        return
    fi
    note end "$1"
    echo "$2; queueing the job again"
    for _ in 1 2 3 4 5 6; do # Slurm may be busy
        if scontrol requeue "$job"; then
            sleep 60 # Slurm ends this script when it takes the job back
            break
        fi
        sleep 10
    done
    return 75
}

do_task() {
    attempts=$run/stages/attempts/$stage.$1
    reason=$run/stages/errors/$stage.$1.txt
    export COSMOS_HPC_STOP=$run/stages/stops/$stage.$1
    rm -f "$reason" "$COSMOS_HPC_STOP" "$COSMOS_HPC_STOP.done" "$COSMOS_HPC_STOP.stopped"
    note start ""
    if [ -n "$warned" ]; then
        go_on stopped "the job was asked to stop"
        return
    fi
    work "$1" &
    interrupted=yes
    while [ "$interrupted" = yes ]; do
        interrupted=no
        wait $!
        code=$?
    done
    # srun says 0 as well when it has lost its node: the worker itself must have said so.
    if [ "$code" = 0 ] && [ -e "$COSMOS_HPC_STOP.done" ]; then
        note end "done"
    elif [ -s "$reason" ]; then
        note end failed
        return 1
    elif [ -e "$run/stages/stop" ]; then
        note end cancelled
        return 75
    elif [ -n "$warned" ] || [ -e "$COSMOS_HPC_STOP.stopped" ]; then
        go_on stopped "the job was asked to stop"
    elif [ "$(grep -c "\"job\": \"$job\".*\"why\": \"killed\"" "$attempts")" -ge "$retries" ]; then
        give_up failed "ended $((retries + 1)) times without a reason, perhaps out of memory"
    else
        go_on killed "the worker was killed without a reason"
    fi
}
"""

_SINGLE = r"""
do_task 0
"""

_ARRAY = r"""
result=0
echo "array task $SLURM_ARRAY_TASK_ID, restart ${SLURM_RESTART_COUNT:-0}, on ${SLURMD_NODENAME:-}"
for ((shard = first + SLURM_ARRAY_TASK_ID; shard < shards; shard += stride)); do
    [ ! -e "$run/tokens/shards/$(printf %05d "$shard")/done.json" ] || continue
    if grep -qs "\"job\": \"$job\".*\"why\": \"failed\"" "$run/stages/attempts/$stage.$shard"; then
        echo "shard $shard has failed in this job before; cosmos-hpc retry tries it again"
        result=1
        continue
    fi
    do_task "$shard" || result=$?
    [ "$result" != 75 ] || break
done
exit "$result"
"""

#: Seconds that torchrun gives its ranks to end.
_PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


def job_name(run: RunFolder, stage: str, run_id: str) -> str:
    """Name of a stage's jobs in the queue, by which any login node finds them."""
    return f"{stage}.{run.name}.{run_id}"


def array_comment(array: Array) -> str:
    """Says in the queue which shards array tasks prepare; see :func:`read_array_comment`."""
    return f"shards {array.first} {array.stride}"


def read_array_comment(comment: str) -> tuple[int, int] | None:
    """First shard and stride of an array in the queue; None where the comment says neither."""
    found = re.search(r"(?:^| )shards (\d+) (\d+)$", comment)
    return (int(found[1]), int(found[2])) if found else None


def check_path(path: Path) -> None:
    """Refuse a path that Slurm or a shell would not keep as it is.

    Raises:
        RequestError: it holds a percent sign, a backslash or a control character, or is not UTF-8.
    """
    text = str(path)
    if _UNSAFE_PATH.search(text) or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RequestError(
            f"{text!r} holds a percent sign, a backslash, a control character or bytes that are "
            f"not UTF-8, which Slurm's scripts cannot name; choose another path"
        )


def render(
    job: Job,
    run: RunFolder,
    cluster: SlurmCluster,
    run_id: str,
    code: Path,
    folders: Sequence[str] = (),
    pyxis: Collection[str] | None = None,
) -> str:
    """The script of a job.

    Args:
        job: what to run.
        run: the run folder, which need not exist yet.
        cluster: where.
        run_id: of the run; tells its jobs from those of others of the same name.
        code: the snapshot of the package that it runs.
        folders: that a container must see besides the run folder, without links.
        pyxis: options that the cluster's pyxis has; None: those of a current one.

    Raises:
        RequestError: a container cannot take a path.
    """
    stage, array = job.stage, job.array
    log = f"logs/{stage.name}/{'%A_%a' if array else '%j'}.log"
    job_id = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "${SLURM_JOB_ID}"
    settings = {
        "run": shlex.quote(str(run.path)),
        "stage": stage.name,
        "job": f'"{job_id}"',
        "log": f'"logs/{stage.name}/{job_id}.log"',
        "requeues": str(cluster.requeues),
        "retries": str(cluster.retries),
    }
    if array:
        settings |= {"first": str(array.first), "stride": str(array.stride)}
        settings["shards"] = str(stage.tasks)
    lines = [
        # A login shell knows the commands of module systems.
        "#!/bin/bash -l" if cluster.setup else "#!/bin/bash",
        f"# Stage {stage.name} of run {run.name}, written by cosmos-hpc.",
        *(f"#SBATCH {flag}" for flag in _flags(job, run, cluster, run_id, log)),
        "",
        *(f"{name}={value}" for name, value in settings.items()),
        "",
        "# srun passes on what is set here, not only what sbatch was given.",
        "unset SLURM_EXPORT_ENV",
        *cluster.setup,
        *_container_lines(cluster),
        *_work(job, run, cluster, code, [str(run.path), *folders], pyxis),
        *(_TAIL + (_ARRAY if array else _SINGLE)).splitlines(),
    ]
    return "\n".join(lines) + "\n"


def _flags(job: Job, run: RunFolder, cluster: SlurmCluster, run_id: str, log: str) -> list[str]:
    """Flags of sbatch; those of the profile come late, where they win, but for its comment."""
    cpus = cluster.cpus_per_gpu
    array = job.array
    comments = [f.partition("=")[2] for f in cluster.sbatch if f.startswith("--comment=")]
    flags = [
        f"--job-name={job_name(run, job.stage.name, run_id)}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        *([f"--cpus-per-task={cpus * job.gpus}"] if cpus and job.gpus else []),
        *([f"--array={array.spec}"] if array else []),
        f"--chdir={run.path}",
        f"--output={run.path}/{log}",
        "--open-mode=append",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        f"--signal=B:USR1@{cluster.grace_seconds}",
        f"--export={','.join(dict.fromkeys([*_BASIC_VARIABLES, *cluster.environment]))}",
        *placement(cluster, job.stage.name, job.gpus),
        *([f"--comment={' '.join([*comments[-1:], array_comment(array)])}"] if array else []),
    ]
    return [_directive(flag) for flag in flags]


def _directive(flag: str) -> str:
    """A flag as a ``#SBATCH`` line needs it: sbatch takes backslashes for escapes in any quotes."""
    name, equals, value = flag.partition("=")
    if equals and value != shlex.quote(value):
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{name}{equals}{value}"


def _work(
    job: Job,
    run: RunFolder,
    cluster: SlurmCluster,
    code: Path,
    folders: Sequence[str],
    pyxis: Collection[str] | None,
) -> list[str]:
    """A shell function that runs one task on all nodes of the job."""
    cpus = cluster.cpus_per_gpu
    # What is set here for what runs in a container.
    passed_on = [STOP_VARIABLE, *([_PATIENCE] if job.processes > 1 else [])]
    srun = [
        "srun",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        # srun does not take it from the job.
        *([f"--cpus-per-task={cpus * job.gpus}"] if cpus and job.gpus else []),
        # One process starts all others of the node: it must not be bound to a core.
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        "--unbuffered",
        "--input=none",
        *containers.srun_flags(cluster, folders, pyxis, passed_on),
        *containers.apptainer_command(cluster, folders, gpus=bool(job.gpus)),
    ]
    words = [shlex.quote(word) for word in [*srun, cluster.python]]
    before = containers.apptainer_exports(cluster, passed_on)
    if job.processes > 1:
        # torchrun would kill ranks that still save their step half a minute after SIGTERM.
        before += [f"export {_PATIENCE}={cluster.grace_seconds}"]
        words += ["-m", "torch.distributed.run", f"--nproc-per-node={job.processes}"]
    if job.nodes > 1:
        before += [
            "# The ranks meet on the first node.",
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            'meeting="$head:$((20000 + SLURM_JOB_ID % 20000))"',
        ]
        words += [f"--nnodes={job.nodes}", "--rdzv-backend=c10d"]
        words += ['--rdzv-id="$job.${SLURM_RESTART_COUNT:-0}"', '--rdzv-endpoint="$meeting"']
    elif job.processes > 1:
        words += ["--standalone"]
    script = [shlex.quote(word) for word in task_script(run, job.stage, code=code)[:-1]]
    command = " \\\n        ".join(_wrapped([*words, *script, '"$1"']))
    return ["work() {", *(f"    {line}" for line in before), f"    {command}", "}"]


def _wrapped(words: Sequence[str], width: int = 88) -> list[str]:
    """Words on lines of about so many characters."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _container_lines(cluster: SlurmCluster) -> list[str]:
    """What a container must not take from the host, and needs where it has no home folder."""
    if cluster.container is None:
        return [""]
    return [
        "unset PYTHONPATH",
        'export TRITON_CACHE_DIR="/tmp/triton-${USER:-}" MPLCONFIGDIR="/tmp/matplotlib-${USER:-}"',
        "",
    ]
