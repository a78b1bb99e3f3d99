"""Complete sbatch scripts of jobs, as text that a person can read and submit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from cosmos_hpc.backends.slurm import containers
from cosmos_hpc.backends.slurm.jobs import JobSpec, array_comment, job_name
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.backends.slurm.secrets import Secrets, exported
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import STOP_VARIABLE, RunFolder
from cosmos_hpc.runs.stages import task_script

#: What a shell needs of the submitting one; the profile's names come on top.
BASIC_VARIABLES = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG")
#: What Slurm's ``--output`` or bash would not take as it is.
_UNSAFE_PATH = re.compile(r"[%\\\x00-\x1f\x7f]")

#: How a job runs a task, and an array task several in turn; their settings are in
#: variables before them.
_JOB, _ARRAY = "job.sh", "job_array.sh"
#: Seconds that torchrun gives its ranks to end.
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


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


def placement(cluster: SlurmCluster, stage: str, gpus: int) -> list[str]:
    """Flags of sbatch that say where a stage's job runs and what it is charged to.

    Args:
        cluster: the profile.
        stage: name of the stage.
        gpus: of one node; 0 for a job on the CPU partition.
    """
    flags = [f"--partition={cluster.partition(gpus)}"]
    flags += [f"--time={cluster.time_of(stage)}"]
    flags += [f"--account={cluster.account}"] if cluster.account else []
    flags += [f"--qos={cluster.qos}"] if cluster.qos else []
    flags += [f"--gres={cluster.gres}:{gpus}"] if gpus else []
    flags += [f"--mem={memory}"] if (memory := cluster.memory(gpus)) else []
    return [*flags, *cluster.sbatch]


def render(
    job: JobSpec,
    run: RunFolder,
    cluster: SlurmCluster,
    run_id: str,
    code: Path,
    folders: Sequence[str] = (),
    pyxis: Collection[str] | None = None,
    secrets: Secrets = Secrets(),  # noqa: B008 - frozen
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
        secrets: what the job reads by itself.

    Raises:
        RequestError: a container cannot take a path.
    """
    stage, array = job.stage, job.array
    log = f"logs/{stage.name}/{'%A_%a' if job.job_array else '%j'}.log"
    of_array = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    job_id = of_array if job.job_array else "${SLURM_JOB_ID}"
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
        settings |= {"tasks": str(stage.tasks), "marker": shlex.quote(stage.kind.marker)}
    lines = [
        # A login shell knows the commands of module systems.
        "#!/bin/bash -l" if cluster.setup else "#!/bin/bash",
        f"# Stage {stage.name} of run {run.name}, written by cosmos-hpc.",
        *(
            f"#SBATCH {flag}"
            for flag in _flags(job, run, cluster, run_id, log, exported(cluster, secrets))
        ),
        "",
        *(f"{name}={value}" for name, value in settings.items()),
        "",
        "# srun passes on what is set here, not only what sbatch was given.",
        "unset SLURM_EXPORT_ENV",
        *cluster.setup,
        *secrets.lines,
        *container_lines(cluster),
        *_work(job, run, cluster, code, [str(run.path), *folders], pyxis),
        "",
        *lines_of(_JOB),
        "",
        *(lines_of(_ARRAY) if array else ["do_task 0"]),
    ]
    return "\n".join(lines) + "\n"


def lines_of(name: str) -> list[str]:
    """Lines of a shell file in this folder, without its first ones, which are for its readers."""
    return Path(__file__).with_name(name).read_text().partition("\n\n")[2].splitlines()


def _flags(
    job: JobSpec, run: RunFolder, cluster: SlurmCluster, run_id: str, log: str, names: Sequence[str]
) -> list[str]:
    """Flags of sbatch; those of the profile come late, where they win, but for its comment."""
    cpus = cluster.cpus_per_gpu
    array = job.array
    comments = [f.partition("=")[2] for f in cluster.sbatch if f.startswith("--comment=")]
    flags = [
        f"--job-name={job_name(run, job.stage.name, run_id)}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        *([f"--cpus-per-task={cpus * job.gpus}"] if cpus and job.gpus else []),
        *([f"--array={array.spec}"] if array and job.job_array else []),
        f"--chdir={run.path}",
        f"--output={run.path}/{log}",
        "--open-mode=append",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        f"--signal=B:USR1@{cluster.grace_seconds}",
        f"--export={','.join(dict.fromkeys([*BASIC_VARIABLES, *names]))}",
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
    job: JobSpec,
    run: RunFolder,
    cluster: SlurmCluster,
    code: Path,
    folders: Sequence[str],
    pyxis: Collection[str] | None,
) -> list[str]:
    """A shell function that runs one task on all nodes of the job."""
    cpus = cluster.cpus_per_gpu
    # What is set here for what runs in a container.
    passed_on = [STOP_VARIABLE, *([SHUTDOWN_TIMEOUT] if job.ranks > 1 else [])]
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
    words = [*srun, *containers.only_inside(cluster, code), cluster.python]
    words = [shlex.quote(word) for word in words]
    before = containers.apptainer_exports(cluster, passed_on)
    before += _without_leftovers(cluster, code, job.nodes)
    if job.ranks > 1:
        # torchrun would kill ranks that still save their step half a minute after SIGTERM.
        before += [f"export {SHUTDOWN_TIMEOUT}={cluster.grace_seconds}"]
        words += ["-m", "torch.distributed.run", f"--nproc-per-node={job.processes}"]
    if job.nodes > 1:
        before += [
            "# The ranks meet on the first node.",
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            'meeting="$head:$((20000 + SLURM_JOB_ID % 20000))"',
        ]
        words += [f"--nnodes={job.nodes}", "--rdzv-backend=c10d"]
        words += ['--rdzv-id="$job.${SLURM_RESTART_COUNT:-0}"', '--rdzv-endpoint="$meeting"']
    elif job.ranks > 1:
        words += ["--standalone"]
    script = [shlex.quote(word) for word in task_script(run, job.stage, code=code)[:-1]]
    command = _continued([*words, *script, '"$1"'])
    return ["work() {", *(f"    {line}" for line in [*before, *command]), "}"]


def _without_leftovers(cluster: SlurmCluster, code: Path, nodes: int) -> list[str]:
    """Lines that remove containers which an earlier start of the job has left behind."""
    command = containers.without_leftovers(cluster, code)
    if not command:
        return []
    srun = ["srun", f"--nodes={nodes}", "--ntasks-per-node=1", "--input=none", *command]
    return [
        "# A container left behind by a lost step has the name of the next one.",
        '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] ||',
        *(f"    {line}" for line in _continued(list(map(shlex.quote, srun)))),
    ]


def _continued(words: Sequence[str]) -> list[str]:
    """Words of one command on lines of a readable length."""
    return " \\\n    ".join(_wrapped(words)).splitlines()


def _wrapped(words: Sequence[str], width: int = 88) -> list[str]:
    """Words on lines of at most about ``width`` characters."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def container_lines(cluster: SlurmCluster) -> list[str]:
    """Variables that a container must not take from the host, or needs without a home folder."""
    if cluster.container is None:
        return [""]
    return [
        "unset PYTHONPATH",
        'export TRITON_CACHE_DIR="/tmp/triton-${USER:-}" MPLCONFIGDIR="/tmp/matplotlib-${USER:-}"',
        "",
    ]
