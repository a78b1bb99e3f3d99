"""The one place that knows Docker's engine: is it there, and what a run's containers are given."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_hpc.config.clusters import DockerCluster
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.videos import source_folder
from cosmos_hpc.errors import RequestError
from cosmos_hpc.hub import cache as hub
from cosmos_hpc.runs.folder import RunFolder

if TYPE_CHECKING:
    import docker

#: Of the Docker SDK for an engine behind a socket of this machine.
_LOCAL_SOCKET = "http+docker://localhost"
#: Folders of the Hub's cache, which containers see as well.


@dataclass(frozen=True)
class Containers:
    """What every container of a run is given.

    Attributes:
        image: id of the image, so that all are of the same one and nothing is pulled.
        python: the image's Python.
        volumes: folders, ``/from:/to:mode``.
        user: ``uid:gid`` that the work runs as, so that files belong to who submitted.
        groups: the further groups of that user.
        shm_size: limit of shared memory.
        values: variables that are no secrets.
        names: variables whose values are read when a container is created.
    """

    image: str
    python: str
    volumes: list[str]
    user: str
    groups: list[str]
    shm_size: str
    values: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


@contextlib.contextmanager
def engine() -> Iterator[docker.DockerClient]:
    """A client of this machine's engine.

    Raises:
        RequestError: none answers, or it is another machine's.
    """
    import docker
    import requests
    from docker.errors import DockerException

    where = os.environ.get("DOCKER_HOST") or "its usual socket"
    remote = RequestError(
        f"the Docker engine at {where} is not behind a socket of this machine, whose folders the "
        f"containers need; set DOCKER_HOST=unix:///path/of/the/socket"
    )
    if not where.startswith(("unix://", "its")):
        raise remote
    try:
        client = docker.from_env()
    except DockerException as e:
        reason = str(e).removeprefix("Error while fetching server API version: ")
        raise RequestError(
            f"no Docker engine answers at {where} ({reason}); start it, or set DOCKER_HOST"
        ) from None
    try:
        # Without DOCKER_HOST the context that the docker command uses is followed.
        if client.api.base_url != _LOCAL_SOCKET:
            raise remote
        yield client
    except (DockerException, requests.RequestException) as e:
        raise RequestError(f"the Docker engine at {where} does not answer: {e}") from None
    finally:
        client.close()


def _image_id(client: docker.DockerClient, image: str) -> str:
    from docker.errors import ImageNotFound

    try:
        return str(client.images.get(image).id)
    except ImageNotFound:
        raise RequestError(
            f"the Docker engine has no image {image!r}; get it with: docker pull {image}"
        ) from None


def containers_of(run: RunFolder, recipe: Recipe, cluster: DockerCluster) -> Containers:
    """What the containers of a run are given.

    Args:
        run: the run folder, which need not exist yet.
        recipe: resolved, its folders absolute.
        cluster: the profile.

    Raises:
        RequestError: the engine or the image is not there, or a folder cannot be mounted.
    """
    with engine() as client:
        image = _image_id(client, cluster.image)
        # There the engine is the user's own, and its root is that user.
        rootless = any("rootless" in o for o in client.info().get("SecurityOptions") or [])
    hub_folders = hub.folders(recipe)
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
    )


def docker_command(containers: Containers, gpus: list[str], command: Sequence[str]) -> list[str]:
    """What a task's container does as a command line of Docker's own program; names, no values."""
    given = containers
    flags = ["--rm", f"--user={given.user}", *(f"--group-add={group}" for group in given.groups)]
    flags += ["--network=host", f"--shm-size={given.shm_size}"]
    flags += [f"--volume={volume}" for volume in given.volumes]
    flags += [f"--env={name}={value}" for name, value in given.values.items()]
    flags += [f"--env={name}" for name in given.names]
    if gpus:
        # Docker reads this as a line of CSV.
        flags.append(f'--gpus="device={",".join(gpus)}"')
    return ["docker", "run", *flags, given.image, *command]


def _volumes(
    run: RunFolder, recipe: Recipe, cluster: DockerCluster, hub_folders: list[str]
) -> list[str]:
    """The profile's mounts, and at their own paths the folders that the run and recipe name."""
    modes = dict.fromkeys(hub_folders, "rw") | {str(run.path): "rw"}
    videos = run.video_folders()
    if recipe.data.input and not videos:
        videos = [source_folder(recipe.data.input)]
    named = (recipe.data.tokenizer, recipe.data.text_encoder, recipe.train.init_from)
    for source in (*videos, *named):
        if source and Path(source).is_absolute():
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
