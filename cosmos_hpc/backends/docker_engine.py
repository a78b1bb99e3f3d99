"""Docker's engine on this machine, and the settings of containers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cosmos_hpc.errors import RequestError

if TYPE_CHECKING:
    import docker

#: Of the Docker SDK for an engine behind a socket of this machine.
_LOCAL_SOCKET = "http+docker://localhost"


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
        unchecked: what the engine was not asked, because none is here; empty where it was.
    """

    image: str
    python: str
    volumes: list[str]
    user: str
    groups: list[str]
    shm_size: str
    values: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    unchecked: str = ""


class NoEngine(RequestError):
    """No engine answers on this machine."""


@contextlib.contextmanager
def engine() -> Iterator[docker.DockerClient]:
    """A client of this machine's engine.

    Raises:
        NoEngine: none answers.
        RequestError: it is another machine's.
    """
    import docker
    import requests
    from docker.errors import DockerException

    where = os.environ.get("DOCKER_HOST") or "its usual socket"
    remote = RequestError(
        f"the Docker engine at {where} is not at a socket of this machine, whose folders the "
        f"containers need; set DOCKER_HOST=unix:///path/of/the/socket"
    )
    if not where.startswith(("unix://", "its")):
        raise remote
    try:
        client = docker.from_env()
    except DockerException as e:
        reason = str(e).removeprefix("Error while fetching server API version: ")
        raise NoEngine(
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


def image_id(client: docker.DockerClient, image: str) -> str:
    """The id of an image that the engine has.

    Raises:
        RequestError: it has none of that name.
    """
    from docker.errors import ImageNotFound

    try:
        return str(client.images.get(image).id)
    except ImageNotFound:
        raise RequestError(
            f"the Docker engine has no image {image!r}; get it with: docker pull {image}"
        ) from None


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
