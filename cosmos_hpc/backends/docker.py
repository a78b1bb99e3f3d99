"""This machine, in containers of its Docker engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from cosmos_hpc.backends.base import Request
from cosmos_hpc.backends.docker_engine import (
    Containers,
    NoEngine,
    docker_command,
    engine,
    image_id,
)
from cosmos_hpc.backends.findings import Finding, environment_findings
from cosmos_hpc.backends.local import torchrun_flags
from cosmos_hpc.backends.machine import Array, MachineBackend, MachineJob
from cosmos_hpc.backends.machine_profile import MachineCluster
from cosmos_hpc.config.clusters import MACHINE_DEFAULTS, PASSED_ON, Line, MountText, Variable
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.videos import source_folder
from cosmos_hpc.errors import RequestError
from cosmos_hpc.hub import needs as hub
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import RunStage, sources_of, task_script
from cosmos_hpc.runs.sweeps import source_of

if TYPE_CHECKING:
    import nemo_run


class DockerCluster(MachineCluster, frozen=True, kw_only=True):
    """This machine, in containers of its Docker engine.

    Attributes:
        image: name or id of an image that the engine has; it needs bash and a Python with the
            libraries of the worker.
        python: the image's Python that runs the workers.
        mounts: further folders that the containers see, ``/from:/to`` or ``/from:/to:ro``, beside
            the run's own and those that its recipe names.
        shm_size: how much memory the processes of a container may share, such as ``8g``.
        environment: names of environment variables that are passed on to the work; never values.
    """

    default_words: ClassVar[Mapping[str, str]] = MACHINE_DEFAULTS

    kind: Literal["docker"]
    image: Line
    python: Line = "python3"
    mounts: list[MountText] = field(default_factory=list)
    shm_size: Annotated[str, Meta(pattern=r"^[1-9][0-9]*[kmg]?\Z")] = "8g"
    environment: list[Variable] = field(default_factory=PASSED_ON.copy)


class DockerArray(Array):
    """An array with one container per task.

    Args:
        run: the run folder.
        stage: the array stage.
        environment: variables that every task gets.
        gpus: see :class:`~cosmos_hpc.backends.machine.Array`.
        containers: what the containers are given.
    """

    def __init__(
        self,
        run: RunFolder,
        stage: RunStage,
        environment: dict[str, str],
        gpus: list[str],
        containers: Containers,
    ) -> None:
        super().__init__(gpus)
        self._run, self._stage, self._containers = run, stage, containers
        self._environment = environment

    def _begin(self, task: int, gpus: list[str]) -> tuple[Any, Path]:
        from cosmos_hpc.backends.experiments import DockerJob

        job = DockerJob(self._run, self._stage, task, self._containers, gpus, self._environment)
        job.__enter__()
        return job, job.log

    def _has_ended(self, job: Any) -> bool:
        if job.running():
            return False
        job.__exit__(None, None, None)
        return True

    def _stop(self, jobs: list[Any]) -> None:
        for job in jobs:
            job.cancel()
        for job in jobs:
            job.__exit__(None, None, None)


class DockerBackend(MachineBackend[DockerCluster]):
    """Every task in a container, as NeMo-Run's experiment."""

    schema = DockerCluster

    def check(self) -> list[Finding]:
        """GPUs, folders, the engine and its image."""
        found = super().check()
        try:
            with engine() as client:
                image_id(client, self.cluster.image)
        except RequestError as e:
            found.append(Finding("problem", str(e)))
        else:
            found.append(Finding("ok", f"image: the Docker engine has {self.cluster.image}"))
        return [*found, *environment_findings(self.cluster.environment)]

    def open(self, request: Request) -> Containers:
        """What the containers of a run are given.

        Raises:
            RequestError: the engine or the image is not there, or a folder cannot be mounted.
        """
        folder, recipe = request.folder, request.recipe
        return containers_of(folder, recipe, self.cluster, may_be_elsewhere=request.dry_run)

    def unchecked(self, opened: Containers) -> str:
        """What no engine was asked."""
        return opened.unchecked

    def array(
        self, run: RunFolder, stage: RunStage, opened: Any, threads: int, gpus: list[str]
    ) -> Array:
        """Containers that run at the same time."""
        return DockerArray(run, stage, {"OMP_NUM_THREADS": str(threads)}, gpus, opened)

    def job(self, run: RunFolder, stage: RunStage, opened: Any, gpus: list[str]) -> MachineJob:
        """A container, which sees only the GPUs that it is given."""
        from cosmos_hpc.backends.experiments import DockerJob

        return DockerJob(run, stage, 0, opened, gpus, {})

    def command(
        self, run: RunFolder, stage: RunStage, task: int, opened: Any, gpus: list[str]
    ) -> list[str]:
        """What a container does, as Docker's own program does it."""
        inside = [opened.python, *torchrun_flags(stage), *task_script(run, stage, task)]
        return docker_command(opened, gpus, inside)

    def executor(
        self, stage: RunStage, run: RunFolder | None, number: int
    ) -> nemo_run.DockerExecutor:
        """Containers of the profile's image; without a run they see the folder of all runs."""
        from cosmos_hpc.backends.experiments import docker_executor, gpus_of

        if run is None:
            runs = RunFolder(self.cluster.runs)
            runs.path.mkdir(parents=True, exist_ok=True)
            containers = containers_of(runs, None, self.cluster)
        else:
            containers = containers_of(run, run.recipe(), self.cluster)
        return docker_executor(containers, gpus_of(self.cluster, stage, number))

    def task(self, run: RunFolder, stage: RunStage, number: int) -> nemo_run.Script:
        """The worker with the image's Python, under torchrun with several ranks."""
        from cosmos_hpc.backends.experiments import docker_task, thread_variables

        threads = thread_variables(self.cluster, stage)
        return docker_task(run, stage, number, self.cluster.python, threads)


def containers_of(
    run: RunFolder,
    recipe: Recipe | None,
    cluster: DockerCluster,
    may_be_elsewhere: bool = False,
) -> Containers:
    """What the containers of a run are given.

    Args:
        run: the run folder, which need not exist yet.
        recipe: resolved, its folders absolute. None: nothing is known of what the run reads.
        cluster: the profile.
        may_be_elsewhere: whether containers are only to be described, also without an engine.

    Raises:
        RequestError: the engine or the image is not there, or a folder cannot be mounted.
    """
    image, rootless, unchecked = cluster.image, False, ""
    try:
        with engine() as client:
            image = image_id(client, cluster.image)
            # There the engine is the user's own, and its root is that user.
            rootless = any("rootless" in o for o in client.info().get("SecurityOptions") or [])
    except NoEngine:
        if not may_be_elsewhere:
            raise
        unchecked = (
            f"Not checked, as no Docker engine answers on this machine: image={image}, whether "
            f"the engine is rootless, and GPUs; cosmos-hpc cluster check does so where it is."
        )
    hub_folders = hub.folders(recipe) if recipe else {}
    names = [name for name in cluster.environment if name in os.environ and name not in hub_folders]
    # The user is not in the image's list of users: its home would be /, and its name unknown.
    person = {"HOME": "/tmp", "USER": os.environ.get("USER") or str(os.getuid())}  # noqa: S108
    return Containers(
        image=image,
        python=cluster.python,
        volumes=_volumes(run, recipe, cluster, list(hub_folders.values())),
        user="0:0" if rootless else f"{os.getuid()}:{os.getgid()}",
        groups=[] if rootless else [str(group) for group in os.getgroups()],
        shm_size=cluster.shm_size,
        values=person | hub_folders,
        names=names,
        unchecked=unchecked,
    )


def _volumes(
    run: RunFolder, recipe: Recipe | None, cluster: DockerCluster, hub_folders: list[str]
) -> list[str]:
    """The profile's mounts, and at their own paths the folders that the run and recipe name."""
    # The folder that holds both runs where one takes over tokens of another: no link leads from one
    # mount to another.
    own = run.path.parent if source_of(run) else run.path
    modes = dict.fromkeys(hub_folders, "rw") | {str(own): "rw"}
    sources = sources_of(recipe) if recipe else {}
    videos = run.data.folders()
    if "data.input" in sources and not videos:
        videos = [source_folder(sources["data.input"])]
    named = [value for key, value in sources.items() if key != "data.input"]
    for source in (*videos, *named):
        # A data set of the Hub lies in its cache, which is written.
        cached = any(Path(source).is_relative_to(folder) for folder in hub_folders)
        if Path(source).is_absolute() and not cached:
            modes.setdefault(source, "ro")
    mounts = {}
    for path, mode in modes.items():
        if ":" in path:
            raise RequestError(f"{path} cannot be mounted in a container: it holds a ':'")
        mounts[path] = f"{path}:{path}:{mode}"
    for text in cluster.mounts:
        source, target, mode = _parts(text)
        if not Path(source).exists():
            raise RequestError(f"cluster {cluster.name} mounts {source}, which does not exist")
        mounts[target] = f"{source}:{target}:{mode}"
    return list(mounts.values())


def _parts(mount: str) -> tuple[str, str, str]:
    source, *rest = mount.split(":")
    target = rest[0] if rest else source
    return source, target, rest[1] if len(rest) > 1 else "rw"
