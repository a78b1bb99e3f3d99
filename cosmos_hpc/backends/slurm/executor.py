"""A stage on a Slurm cluster for NeMo-Run: its SlurmExecutor, and a task that fits into its script.

NeMo-Run writes the script. Its ``srun`` line ends with the words of the task, unquoted: here they
are quoted, what the shell of the job knows, such as its nodes, is read there, and after them
stands how to wait for the task.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from cosmos_hpc.backends.slurm import containers, script, submit
from cosmos_hpc.backends.slurm.facts import container_options
from cosmos_hpc.backends.slurm.jobs import JobSpec, jobs_of
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.backends.slurm.secrets import Secrets, exported, find_secrets
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import STOP_VARIABLE, RunFolder
from cosmos_hpc.runs.stages import RunStage, task_script

if TYPE_CHECKING:
    import nemo_run

#: Before the names of jobs. NeMo-Run's own prefix is made of an account, which need not be set.
_PREFIX = "cosmos-hpc."
#: Replaced by the folder of the job, wherever it stands in a script without a container.
_REPLACED = "/nemo_run"
#: How the script waits for a task; its settings are in variables before it.
_WAITING = "nemo_run.sh"
#: Flags of sbatch that are fields of the executor; the others are its additional parameters.
_FIELDS = ("account", "partition", "qos", "gres", "time")


def executor(
    cluster: SlurmCluster, stage: RunStage, run: RunFolder | None
) -> nemo_run.SlurmExecutor:
    """NeMo-Run's executor for the jobs of a stage.

    Args:
        cluster: the profile.
        stage: the stage, with its ranks.
        run: whose folders a container is to see; None: only the folder of runs.

    Raises:
        RequestError: the ranks do not spread over nodes, or a container cannot take a path.
    """
    import nemo_run

    (job,) = jobs_of(stage, [0], cluster)
    secrets = find_secrets(cluster)
    names = [*script.BASIC_VARIABLES, *exported(cluster, secrets)]
    flags: dict[str, Any] = {
        "export": ",".join(dict.fromkeys(names)),
        "kill_on_invalid_dep": "yes",
        **dict(map(_parameter, script.placement(cluster, stage.name, job.gpus))),
    }
    fields = {name: flags.pop(name, None) for name in _FIELDS}
    return nemo_run.SlurmExecutor(
        **fields,
        job_name_prefix=_PREFIX,
        nodes=job.nodes,
        ntasks_per_node=1,
        cpus_per_task=_cpus(cluster, job) or None,
        # To the script alone, which has a trap: of a signal to the steps what libraries have
        # started beside the workers would die.
        signal=f"B:USR1@{cluster.grace_seconds}",
        retries=cluster.requeues,
        setup_lines="\n".join(_setup(cluster, secrets)),
        additional_parameters=flags,
        # The default packager fails outside a git repository; a run has a snapshot of its code.
        packager=nemo_run.Packager(),
        **_srun(cluster, job, _folders(cluster, run)),
    )


def _parameter(flag: str) -> tuple[str, str | bool]:
    """A flag of sbatch as NeMo-Run's parameter; one without a value is True."""
    name, equals, value = flag.removeprefix("--").partition("=")
    return name.replace("-", "_"), value if equals else True


def _cpus(cluster: SlurmCluster, job: JobSpec) -> int:
    """CPUs of the one process on each node that starts the others; 0: Slurm's default."""
    return (cluster.cpus_per_gpu or 0) * job.gpus


def _folders(cluster: SlurmCluster, run: RunFolder | None) -> list[str]:
    """What a container must see."""
    if run is None:
        return [str(RunFolder(cluster.runs).path)]
    return [str(run.path), *submit.folders_outside(run, run.recipe())]


def _setup(cluster: SlurmCluster, secrets: Secrets) -> list[str]:
    """Shell lines before the ``srun`` of the task.

    Raises:
        RequestError: NeMo-Run would change them.
    """
    lines = [
        "# NeMo-Run traces its script: values of variables would appear in the log.",
        "{ set +vx; } 2>/dev/null",
        "# srun passes on what is set here, not only what sbatch was given.",
        "unset SLURM_EXPORT_ENV",
        "# The warning before the time limit would kill the script.",
        "trap warned=yes USR1 TERM",
        # NeMo-Run's shell is none of a login, which knows the commands of module systems.
        *(["[ ! -r /etc/profile ] || . /etc/profile"] if cluster.setup else []),
        *cluster.setup,
        *secrets.lines,
        *filter(None, script.container_lines(cluster)),
        *containers.apptainer_exports(cluster),
    ]
    _check_replaced(cluster, lines)
    return lines


def _srun(cluster: SlurmCluster, job: JobSpec, folders: list[str]) -> dict[str, Any]:
    """Fields of the executor that become flags of ``srun``."""
    cpus = _cpus(cluster, job)
    arguments = [
        # srun does not take it from the job.
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        # One process starts all others of the node: it must not be bound to a core.
        "--cpu-bind=none",
        "--unbuffered",
        "--input=none",
    ]
    if not _has_pyxis(cluster):
        return {"srun_args": arguments}
    flags = containers.srun_flags(cluster, folders, container_options())
    options = dict(flag.split("=", 1) for flag in flags if "=" in flag)
    names = options.get("--container-env")
    return {
        "container_image": options["--container-image"],
        "container_mounts": [str(mount) for mount in containers.mounts(cluster, folders)],
        **({"container_env": names.split(",")} if names else {}),
        "srun_args": [*arguments, *(flag for flag in flags if "=" not in flag)],
    }


def _has_pyxis(cluster: SlurmCluster) -> bool:
    """Whether NeMo-Run knows of the container; apptainer is called by the task."""
    return cluster.container is not None and cluster.container_runtime == "pyxis"


def task(cluster: SlurmCluster, run: RunFolder, stage: RunStage, number: int) -> nemo_run.Script:
    """A task of a stage as NeMo-Run's task for :func:`executor`.

    Args:
        cluster: of the run.
        run: an existing run folder.
        stage: the stage.
        number: of the task.

    Raises:
        RequestError: the ranks do not spread over nodes, or NeMo-Run or a container cannot take
            a path.
    """
    import nemo_run

    script.check_path(run.path)
    (job,) = jobs_of(stage, [number], cluster)
    apptainer = containers.apptainer_command(cluster, _folders(cluster, run), gpus=bool(job.gpus))
    inside = containers.only_inside(cluster, run.code())
    run.task_stop(stage.name, number).parent.mkdir(parents=True, exist_ok=True)
    # The script makes this file when Slurm warns it, and the worker stops at the next safe point. A
    # file of its own for each start of the job: nobody has to remove it.
    stop = _word(str(run.task_stop(stage.name, number)))
    stop += '".$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"'
    ranks = job.nodes * job.processes
    words: list[str] = [
        *(_word(word) for word in (*apptainer, *inside, "env")),
        f"{STOP_VARIABLE}={stop}",
        # torchrun would kill ranks that still save their step half a minute after SIGTERM.
        *([f"{script.SHUTDOWN_TIMEOUT}={cluster.grace_seconds}"] if ranks > 1 else []),
        _word(cluster.python),
        *(_torchrun(job) if ranks > 1 else []),
        *(_word(word) for word in task_script(run, stage, number)),
    ]
    _check_replaced(cluster, words)
    waiting = {
        "stop": stop,
        "reason": _word(str(run.error(stage.name, number))),
        "cancelled": _word(str(run.stop_request)),
        "retries": str(cluster.retries),
    }
    return nemo_run.Script(
        entrypoint=words[0],
        path=words[1],
        args=[*words[2:], _waiting(waiting)],
    )


def _word(text: str) -> str:
    """A word for the shell of the job; NeMo-Run takes two dollars for one."""
    return shlex.quote(text).replace("$", "$$")


def _torchrun(job: JobSpec) -> list[str]:
    """Arguments of a Python that starts a script on all ranks of the job."""
    words = ["-m", "torch.distributed.run", f"--nproc-per-node={job.processes}"]
    if job.nodes == 1:
        return [*words, "--standalone"]
    # The ranks meet on the first node.
    head = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    return [
        *words,
        f"--nnodes={job.nodes}",
        "--rdzv-backend=c10d",
        '--rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"',
        f'--rdzv-endpoint="{head}:$((20000 + SLURM_JOB_ID % 20000))"',
    ]


def _waiting(values: dict[str, str]) -> str:
    """Shell text after the task: puts it in the background, and waits for it.

    Args:
        values: of the variables that ``nemo_run.sh`` needs, as words of shell.
    """
    lines = [f"{name}={value}" for name, value in values.items()]
    return "\n".join(["&", *lines, *script.lines_of(_WAITING)])


def _check_replaced(cluster: SlurmCluster, texts: list[str]) -> None:
    """Refuse what NeMo-Run would replace in a script that has no container of its own.

    Raises:
        RequestError: names the text.
    """
    found = next((text for text in texts if _REPLACED in text), None)
    if found and not _has_pyxis(cluster):
        raise RequestError(
            f"{found!r} holds {_REPLACED!r}, for which NeMo-Run writes another path into the "
            f"scripts of jobs without a container; choose another path"
        )
