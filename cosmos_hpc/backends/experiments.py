"""Tasks of stages as NeMo-Run's experiments on this machine, in processes and in containers."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_hpc.backends.docker_engine import Containers, engine
from cosmos_hpc.backends.machine import MachineJob
from cosmos_hpc.backends.machine_profile import MachineCluster, gpus_here, threads_of
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import RunStage, task_script
from cosmos_hpc.utils.imports import large_imports, without

if TYPE_CHECKING:
    import nemo_run


def task(
    run: RunFolder, stage: RunStage, environment: dict[str, str], number: int = 0
) -> nemo_run.Script:
    """A stage as a NeMo-Run task on one machine: its script, under torchrun with several ranks.

    torchrun is called here and not by NeMo-Run's launcher, which quotes arguments for a shell that
    a local job does not have: paths with spaces would break.

    Args:
        run: an existing run folder.
        stage: the stage.
        environment: variables on top of the submitting process's own; no secrets, NeMo-Run keeps
            them.
        number: of the task.
    """
    import nemo_run

    script = task_script(run, stage, number)
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


def local_executor(environment: dict[str, str] | None = None) -> nemo_run.LocalExecutor:
    """NeMo-Run's executor for this machine.

    Args:
        environment: variables on top of the submitting process's own; no secrets.
    """
    import nemo_run

    # The default packager fails outside a git repository; the run's code is a snapshot already.
    return nemo_run.LocalExecutor(packager=nemo_run.Packager(), env_vars=environment or {})


def gpus_of(cluster: MachineCluster, stage: RunStage, number: int) -> list[str]:
    """The GPUs of this machine that a task uses, as CUDA_VISIBLE_DEVICES names them.

    Of an array, task ``n`` uses the GPU of task ``n % parallel``: no two of those that
    :func:`cosmos_hpc.nemo_run.experiment` has run at the same time use the same one.
    """
    if not stage.kind.gpus:
        return []
    gpus = gpus_here(cluster)
    if not stage.kind.array:
        return gpus[: stage.ranks]
    return [gpus[number % cluster.parallel]] if gpus else []


def thread_variables(cluster: MachineCluster, stage: RunStage) -> dict[str, str]:
    """Variables that keep a task from starting a thread for each core, where several share them."""
    return {"OMP_NUM_THREADS": str(threads_of(cluster))} if stage.kind.array else {}


def _import_nemo_run(folder: Path) -> None:
    # Read when NeMo-Run is first imported: its job registry would go to the home folder.
    os.environ.setdefault("NEMORUN_HOME", str(folder / ".nemo_run"))
    # Where torch is installed, NeMo-Run imports it, to write its types, which no task here has.
    with large_imports(), without("torch"):
        import nemo_run  # noqa: F401


def _experiment(run: RunFolder, stage: RunStage, name: str | None = None) -> nemo_run.Experiment:
    """An experiment that is kept in the run folder and prints nothing."""
    _import_nemo_run(run.path.parent)
    import nemo_run

    return nemo_run.Experiment(
        f"{run.name}-{stage.name}",
        id=name,
        base_dir=str(run.path / "nemo_run"),
        log_level="ERROR",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
        serialize_metadata_for_scripts=False,
    )


class ExperimentJob(MachineJob):
    """A task as a NeMo-Run experiment of its own.

    Args:
        experiment: keeps its files in the run folder.
        name: of the task in the experiment.
        task, executor: NeMo-Run's.
    """

    def __init__(
        self,
        experiment: nemo_run.Experiment,
        name: str,
        task: nemo_run.Script,
        executor: nemo_run.Executor,
    ) -> None:
        self._experiment, self._name = experiment, name
        self._task, self._executor = task, executor

    def __enter__(self) -> ExperimentJob:
        self._experiment.__enter__()
        try:
            self._experiment.add(self._task, executor=self._executor, name=self._name)
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
    def _folder(self) -> Path:
        return Path(self._experiment.jobs[0].executor.job_dir)

    def running(self) -> bool:
        """Whether the job has not ended yet."""
        state = self._experiment.status(return_dict=True)[self._name]["status"]
        return state.name in ("RUNNING", "SUBMITTED", "PENDING", "UNSUBMITTED")

    def cancel(self) -> None:
        """Stop the job and its ranks, and wait until they are gone."""
        self._experiment.cancel(self._name)


class LocalJob(ExperimentJob):
    """A stage of one task in processes of this machine.

    Args:
        run: the run folder.
        stage: the stage.
        environment: see :func:`task`.
    """

    def __init__(self, run: RunFolder, stage: RunStage, environment: dict[str, str]) -> None:
        experiment = _experiment(run, stage)
        super().__init__(experiment, stage.name, task(run, stage, environment), local_executor())

    @property
    def log(self) -> Path | None:
        """File with both output streams; None before the job has begun."""
        return next(self._folder.glob("nemo_run/*/*/0/combined.log"), None)


@dataclass(frozen=True)
class FromEnvironment:
    """The value of a variable of this process, read when a container is created.

    What NeMo-Run keeps on the disk of an executor is this object with the name; only the Docker
    SDK, which builds the engine's request, turns it into text.
    """

    name: str

    def __str__(self) -> str:
        return os.environ[self.name]


@functools.cache
def _patch_docker_executor() -> None:
    """Let a container's job folder hold any path.

    NeMo-Run makes the folder that a packager's code goes to through a shell, without quotes. There
    is no code to package here: the run's own snapshot is what runs.
    """
    import nemo_run

    package = nemo_run.DockerExecutor.package

    def patched(self: nemo_run.DockerExecutor, packager: nemo_run.Packager, job_name: str) -> None:
        if type(packager) is nemo_run.Packager:
            os.makedirs(os.path.join(self.job_dir, "code"), exist_ok=True)  # noqa: PTH103
        else:
            package(self, packager, job_name)

    nemo_run.DockerExecutor.package = patched


def docker_executor(containers: Containers, gpus: list[str]) -> nemo_run.DockerExecutor:
    """NeMo-Run's executor for containers of this machine.

    Args:
        containers: what they are given.
        gpus: those that a container sees, by number or UUID; none where empty.
    """
    import nemo_run

    _patch_docker_executor()
    further: dict[str, Any] = {"user": containers.user, "group_add": containers.groups}
    if gpus:
        # Not NeMo-Run's num_gpus, which says how many and not which.
        further["device_requests"] = [
            {"device_ids": gpus, "capabilities": [["compute", "utility"]]}
        ]
    names = {name: FromEnvironment(name) for name in containers.names}
    return nemo_run.DockerExecutor(
        container_image=containers.image,
        volumes=list(containers.volumes),
        shm_size=containers.shm_size,
        # The default would make a bridge; the ranks of one container find each other either way.
        network="host",
        env_vars={**containers.values, **names},
        packager=nemo_run.Packager(),
        additional_kwargs=further,
    )


def docker_task(
    run: RunFolder, stage: RunStage, number: int, python: str, environment: dict[str, str]
) -> nemo_run.Script:
    """A task of a stage as a NeMo-Run task for a container.

    Args:
        run: an existing run folder.
        stage: the stage.
        number: of the task.
        python: the container's Python.
        environment: variables; no secrets, NeMo-Run keeps them.
    """
    import nemo_run

    command = [python]
    if stage.ranks > 1:
        # Not the program torchrun, which may lie elsewhere than its Python; and an address that
        # needs no look-up of the container's name.
        command += ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]
        command += [f"--nproc-per-node={stage.ranks}"]
    entrypoint, path, *arguments = map(_quoted, [*command, *task_script(run, stage, number)])
    return nemo_run.Script(path=path, args=arguments, entrypoint=entrypoint, env=environment)


def _quoted(argument: str) -> str:
    """An argument for a shell inside the double quotes of NeMo-Run's container command."""
    return shlex.quote(argument).replace("\\", "\\\\").replace('"', '\\"')


class DockerJob(ExperimentJob):
    """A task of a stage in a container, as a NeMo-Run experiment; ends with the ``with`` block.

    Args:
        run: the run folder; the experiment is kept in it.
        stage: the stage.
        number: of the task.
        containers: what the container is given.
        gpus: see :func:`docker_executor`.
        environment: see :func:`docker_task`.
    """

    def __init__(
        self,
        run: RunFolder,
        stage: RunStage,
        number: int,
        containers: Containers,
        gpus: list[str],
        environment: dict[str, str],
    ) -> None:
        own_name = f"{stage.name}-{number}"
        # The container's name is made of this and the job's, the last 32 characters are its host
        # name, which may not begin with a dash.
        name = f"{re.sub('[^A-Za-z0-9]', '', run.name)}-{uuid.uuid4().hex[:8]}"
        self._container = f"{name}-{own_name}"
        super().__init__(
            _experiment(run, stage, name),
            own_name,
            docker_task(run, stage, number, containers.python, environment),
            docker_executor(containers, gpus),
        )

    def __enter__(self) -> DockerJob:
        import requests
        from docker.errors import APIError

        try:
            super().__enter__()
        except APIError as e:
            self._remove_unstarted()
            raise WorkError(f"Docker did not start {self._name}: {e.explanation}") from None
        except requests.RequestException as e:
            raise WorkError(
                f"the Docker engine does not answer ({e}); start it, then the same command resumes"
            ) from None
        return self

    def __exit__(self, *error: Any) -> None:
        import requests

        if not self._ended.exists():
            # Killed from outside: NeMo-Run would wait for its exit code in vain.
            self.cancel()
        # Where the engine is gone, running() has said so.
        with contextlib.suppress(requests.RequestException):
            super().__exit__(*error)

    def _remove_unstarted(self) -> None:
        """Remove a container that was created and could not be started."""
        from docker.errors import NotFound

        with engine() as client, contextlib.suppress(NotFound):
            client.containers.get(self._container).remove(force=True)

    def running(self) -> bool:
        """Whether the container has not ended yet.

        Raises:
            WorkError: the engine answers no more; NeMo-Run would report the last state forever.
        """
        try:
            with engine():
                return super().running()
        except RequestError as e:
            raise WorkError(f"{e}; then the same command resumes") from None

    @property
    def _ended(self) -> Path:
        """Where the container's shell leaves the exit code."""
        return self._folder / f"status_{self._container}.out"

    @property
    def log(self) -> Path:
        """File with both output streams."""
        return self._folder / f"log_{self._container}.out"
