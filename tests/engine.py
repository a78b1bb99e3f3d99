"""A Docker engine in a folder of this machine: Debian's podman, which serves Docker's interface.

Needs root, podman and runc. Its one image holds nothing: the machine's programs and this Python are
mounted, so that a container starts in a fraction of a second and no registry is needed.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.errors import APIError

IMAGE = "cosmos-test"
_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
#: Where programs and libraries are: links into /usr, or folders of their own.
_SYSTEM = ("bin", "sbin", "lib", "lib64")


def missing_programs() -> list[str]:
    """Programs that are not installed."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    return [name for name in ("podman", "runc", "conmon") if not shutil.which(name, path=path)]


class Engine:
    """The engine; runs during the ``with`` block.

    Args:
        folder: where everything of it lies; short, for the socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/socket"

    def __enter__(self) -> Engine:
        (self.folder / "containers.conf").write_text(_CONF)
        self.start()
        self.client = docker.DockerClient(base_url=self.host)
        self.client.api.import_image_from_data(_root_file_system(), repository=IMAGE)
        return self

    def __exit__(self, *error: object) -> None:
        self.remove_all()
        self.client.close()
        self.stop()

    def start(self) -> None:
        """Begin to answer."""
        socket = self.folder / "socket"
        folders = [f"--{name}={self.folder / name}" for name in ("root", "runroot", "tmpdir")]
        command = ["podman", "--storage-driver=vfs", *folders]
        with open(self.folder / "log", "wb") as log:
            self._service = subprocess.Popen(
                [*command, "system", "service", "--time=0", self.host],
                env={**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")},
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + 20
        while not socket.exists():
            if self._service.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)
        # Whoever may reach the folder may use it.
        socket.chmod(0o666)

    def stop(self) -> None:
        """Answer no more; containers go on."""
        self._service.send_signal(signal.SIGTERM)
        self._service.wait(timeout=20)
        (self.folder / "socket").unlink(missing_ok=True)

    def profile(self, path: Path, *further: str, **settings: Any) -> str:
        """Write a cluster profile whose containers have this machine's Python; returns its path.

        Args:
            path: where to.
            further: mounts.
            settings: of the profile, on top of those that the tests need.
        """
        system = [f"/{name}" for name in _SYSTEM if not Path("/", name).is_symlink()]
        system += ["/usr", sys.base_prefix, sys.prefix]
        mounts = [f"{m}:{m}:ro" for m in dict.fromkeys(system) if Path(m).exists()]
        profile = {
            "kind": "docker",
            "image": IMAGE,
            "python": sys.executable,
            "gpus": 0,
            "parallel": 2,
            "mounts": [*mounts, *further],
            "shm_size": "512m",
        }
        path.write_text(yaml.safe_dump({**profile, **settings}))
        return str(path)

    def remove_all(self) -> None:
        """Remove all containers, the running ones too."""
        for container in self.client.api.containers(all=True):
            with contextlib.suppress(APIError):
                self.client.api.remove_container(container["Id"], force=True)

    def containers(self, all: bool = True) -> list[str]:
        """Names of the containers that run, and of ``all`` others."""
        # Not containers.list, which asks for each of them as well: some are gone by then.
        return [c["Names"][0].lstrip("/") for c in self.client.api.containers(all=all)]


def _root_file_system() -> bytes:
    """A tar of empty folders, and the machine's links into /usr."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("dev", "etc", "proc", "sys", "tmp", "usr"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        for name in _SYSTEM:
            if Path("/", name).is_symlink():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, str(Path("/", name).readlink())
                tar.addfile(entry)
    return buffer.getvalue()
