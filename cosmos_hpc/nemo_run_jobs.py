"""The one place that knows NeMo-Run: single-job stages as tasks on its executors."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_hpc.cluster import SlurmCluster
from cosmos_hpc.errors import RequestError
from cosmos_hpc.jobs import Job
from cosmos_hpc.runs import RunFolder
from cosmos_hpc.slurm import last_line
from cosmos_hpc.slurm_jobs import clean_environment
from cosmos_hpc.stages import Stage, task_script

if TYPE_CHECKING:
    import nemo_run


def task(run: RunFolder, stage: Stage, environment: dict[str, str]) -> nemo_run.Script:
    """A stage as a NeMo-Run task on one machine: its script, under torchrun with several ranks.

    torchrun is called here and not by NeMo-Run's launcher, which quotes arguments for a shell that
    a local job does not have: paths with spaces would break.

    Args:
        run: an existing run folder.
        stage: a stage of one task.
        environment: variables on top of the submitting process's own; no secrets, NeMo-Run keeps
            them.
    """
    import nemo_run

    script = task_script(run, stage)
    if stage.ranks == 1:
        return nemo_run.Script(
            path=script[0], args=script[1:], entrypoint=sys.executable, env=environment
        )
    flags = ["--standalone", f"--nproc-per-node={stage.ranks}"]
    return nemo_run.Script(
        path=flags[0],
        args=[*flags[1:], *script],
        entrypoint=str(Path(sys.executable).with_name("torchrun")),
        env=environment,
    )


def local_executor() -> nemo_run.LocalExecutor:
    """NeMo-Run's executor for this machine."""
    import nemo_run

    # The default packager fails outside a git repository; the run's code is a snapshot already.
    return nemo_run.LocalExecutor(packager=nemo_run.Packager())


def slurm_executor(job: Job, cluster: SlurmCluster, folder: Path) -> nemo_run.SlurmExecutor:
    """NeMo-Run's executor for a single job on a Slurm cluster, to use in Experiments as well.

    Args:
        job: its size.
        cluster: where.
        folder: NeMo-Run writes its experiments below it.
    """
    import nemo_run

    gpus = bool(job.gpus)
    return nemo_run.SlurmExecutor(
        account=cluster.account,
        partition=cluster.gpu_partition if gpus else cluster.cpu_partition,
        time=getattr(cluster.time, job.stage.name),
        nodes=job.nodes,
        ntasks_per_node=1,
        torchrun_nproc_per_node=job.processes,
        gres=f"{cluster.gres}:{job.gpus}" if gpus else None,
        container_image=cluster.container,
        container_mounts=list(cluster.mounts),
        tunnel=nemo_run.LocalTunnel(job_dir=str(folder / "experiments")),
        # The default one fails outside a git repository.
        packager=nemo_run.Packager(),
        poll_estimated_start_time=False,
        additional_parameters={"qos": cluster.qos} if cluster.qos else {},
    )


def submit_slurm(job: Job, cluster: SlurmCluster, script: Path, flags: Sequence[str]) -> str:
    """Submit a single job to Slurm through NeMo-Run.

    The script is ours: NeMo-Run's own does not forward Slurm's warning before the time limit,
    writes environment values unquoted, and queues itself again after every failure.

    Args:
        job, cluster: what the script is of.
        script: complete, with its ``#SBATCH`` lines.
        flags: of sbatch, on top of them.

    Returns:
        The job's id.

    Raises:
        RequestError: Slurm does not take it.
    """
    _prepare_import(script.parent)
    from invoke.exceptions import UnexpectedExit
    from nemo_run.core.execution.slurm import SlurmBatchRequest, SlurmJobDetails
    from nemo_run.run.torchx_backend.schedulers.slurm import SlurmTunnelScheduler
    from torchx.specs import AppDryRunInfo

    executor = slurm_executor(job, cluster, script.parent)
    executor.experiment_id = executor.job_name = job.name
    executor.job_dir = str(script.parent)
    executor.job_details = SlurmJobDetails(job_name=job.name, folder=str(script.parent))
    # Becomes part of a shell command.
    executor.tunnel.job_dir = shlex.quote(str(script.parent))
    request = SlurmBatchRequest(
        launch_cmd=["sbatch", "--parsable", *map(shlex.quote, flags)],
        jobs=[job.name],
        command_groups=[],
        executor=executor,
        max_retries=0,
        extra_env={},
    )
    scheduler = SlurmTunnelScheduler(job.name)
    try:
        with clean_environment():
            answer = scheduler.schedule(AppDryRunInfo(request, repr))
    except UnexpectedExit as e:
        raise RequestError(f"Slurm does not take {script}: {last_line(e.result.stderr)}") from None
    # On federated clusters the id comes with the name of its cluster.
    return answer.partition(";")[0]


def _prepare_import(folder: Path) -> None:
    # Read when NeMo-Run is first imported: its job registry would go to the home folder.
    os.environ.setdefault("NEMORUN_HOME", str(folder / ".nemo_run"))
    # Where torch is installed, NeMo-Run imports it, and it warns of a package that NeMo brings.
    warnings.filterwarnings("ignore", message="The pynvml package is deprecated")


class LocalJob:
    """A stage that runs on this machine as a NeMo-Run experiment; ends with the ``with`` block.

    Args:
        run: the run folder; the experiment is kept in it.
        stage: a stage of one task.
        environment: see :func:`task`.
    """

    def __init__(self, run: RunFolder, stage: Stage, environment: dict[str, str]) -> None:
        _prepare_import(run.path.parent)
        import nemo_run

        self._stage = stage
        self._task, self._executor = task(run, stage, environment), local_executor()
        self._experiment = nemo_run.Experiment(
            f"{run.name}-{stage.name}",
            base_dir=str(run.path / "nemo_run"),
            log_level="ERROR",
            clean_mode=True,
            enable_goodbye_message=False,
            skip_status_at_exit=True,
            serialize_metadata_for_scripts=False,
        )

    def __enter__(self) -> LocalJob:
        self._experiment.__enter__()
        try:
            self._experiment.add(self._task, executor=self._executor, name=self._stage.name)
            self._experiment.run()
        except BaseException:
            # Interrupted here, the job may have begun, and nobody else would stop it.
            self.cancel()
            self._experiment.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        # Waits for the job, so cancel it first where it should not end by itself.
        self._experiment.__exit__(*error)

    @property
    def log(self) -> Path | None:
        """File with both output streams; None before the job has begun."""
        folder = Path(self._experiment.jobs[0].executor.job_dir)
        return next(folder.glob("nemo_run/*/*/0/combined.log"), None)

    def running(self) -> bool:
        """Whether the job has not ended yet."""
        state = self._experiment.status(return_dict=True)[self._stage.name]["status"]
        return state.name in ("RUNNING", "SUBMITTED", "PENDING", "UNSUBMITTED")

    def cancel(self) -> None:
        """Stop the job and its ranks, and wait until they are gone."""
        self._experiment.cancel(self._stage.name)
