"""Containers on a cluster: flags of srun for pyxis, command lines of apptainer.

Pure: nothing here asks Slurm, and nothing is quoted; whoever renders a script does both.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cosmos_hpc
from cosmos_hpc.backends.slurm.facts import Facts
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.errors import RequestError

#: What pyxis must have, by the name that ``srun --help`` shows, and since when it has it.
_NEEDED = ("--container-image", "--container-mounts", "--container-workdir")
_HOME = "--container-mount-home"
_ENVIRONMENT = "--container-env"
_WRITABLE = "--container-writable"
_PACKAGE = Path(cosmos_hpc.__file__).parent
#: Is in every container that pyxis starts, mounted on nothing of the image's, and on no host.
_SIGN = "/cosmos-hpc-container"
#: Endings that distinguish a file from a name in a registry.
_IMAGE_FILES = (".sqsh", ".squashfs", ".sqfs", ".sif", ".img")
#: What enroot takes as a name: ``[user@][registry#]name[:tag]``.
_ENROOT_NAME = re.compile(r"(?:[^@#/]+@)?(?:[^#/]+#)?[a-z0-9/._-]+(?:[:@][A-Za-z0-9._:-]+)?")
#: pyxis separates mounts with these two, and writes each as a line of fstab into a shell script, in
#: double quotes.
_NOT_FOR_PYXIS = re.compile(r'[\s,:"$`\\]')
#: apptainer separates with the first two, and reads the third as an escape.
_NOT_FOR_APPTAINER = re.compile(r"[,:\\\n]")


@dataclass(frozen=True)
class Mount:
    """A folder of the host in a container.

    Attributes:
        source, target: absolute paths, outside and inside.
        options: such as ``ro``; empty for none.
    """

    source: str
    target: str
    options: str = ""

    def __str__(self) -> str:
        return ":".join(filter(None, (self.source, self.target, self.options)))


def mounts(cluster: SlurmCluster, folders: Sequence[str]) -> list[Mount]:
    """Folders of the host that a container of the profile sees, parents first.

    Those are the profile's mounts, the folders at their own paths, and with pyxis a sign by which
    :func:`only_inside` tells that it is in a container. A folder that a mount of the
    profile has for its target, or that can be seen at its own path already, below another one, is
    not mounted again.

    Raises:
        RequestError: a path that the profile's runtime cannot mount.
    """
    chosen = {mount.target: mount for mount in map(_parse, cluster.mounts)}
    for folder in sorted(map(os.path.abspath, folders)):
        around = chosen.get(_innermost(folder, chosen))
        seen = around is not None and around.source == around.target
        if folder not in chosen and not seen:
            chosen[folder] = Mount(folder, folder)
    for mount in chosen.values():
        _check_mount(cluster, mount)
    if cluster.container_runtime == "pyxis":
        chosen[_SIGN] = Mount("/dev/null", _SIGN)
    return [chosen[target] for target in sorted(chosen)]


def _parse(text: str) -> Mount:
    source, target, options = (*text.split(":"), "", "")[:3]
    return Mount(os.path.normpath(source), os.path.normpath(target or source), options)


def _innermost(folder: str, targets: Iterable[str]) -> str:
    """The longest of the paths that the folder is or lies below; empty if there is none."""
    above = [t for t in targets if folder == t or folder.startswith(t.rstrip("/") + "/")]
    return max(above, key=len, default="")


def _check_mount(cluster: SlurmCluster, mount: Mount) -> None:
    pyxis = cluster.container_runtime == "pyxis"
    unfit = _NOT_FOR_PYXIS if pyxis else _NOT_FOR_APPTAINER
    for path in (mount.source, mount.target):
        found = unfit.search(path)
        if found:
            raise RequestError(
                f"{cluster.container_runtime} cannot mount {path!r}: there is {found[0]!r} in it; "
                f"rename it, or put a folder above it into the profile's mounts"
            )
    if mount.target == "/":
        raise RequestError("mounts: / would hide all of the container; name folders below it")
    if not pyxis and mount.options not in ("", "ro", "rw"):
        raise RequestError(f"mounts: {mount}: apptainer knows the options ro and rw only")


def mount_around(cluster: SlurmCluster, path: str) -> Mount | None:
    """The mount of the profile that a path in the container lies in; None for the image's own."""
    chosen = {mount.target: mount for mount in map(_parse, cluster.mounts)}
    return chosen.get(_innermost(path, chosen))


def image(cluster: SlurmCluster) -> str:
    """The profile's image as its runtime wants it: files by absolute path, others as they are."""
    assert cluster.container is not None
    if is_file(cluster):
        # pyxis takes what begins with neither / nor . for a name in a registry.
        return os.path.abspath(Path(cluster.container).expanduser())
    return cluster.container


def is_file(cluster: SlurmCluster) -> bool:
    """Whether the profile's image is a file or folder, and not a name in a registry."""
    name = cluster.container or ""
    if cluster.container_runtime == "apptainer":
        return re.match(r"[a-z-]+:", name) is None
    return name.startswith(("/", ".", "~")) or (
        name.endswith(_IMAGE_FILES) and "://" not in name and "#" not in name
    )


def srun_flags(
    cluster: SlurmCluster,
    folders: Sequence[str],
    options: Collection[str] | None = None,
    environment: Sequence[str] = (),
) -> list[str]:
    """Flags of srun with which pyxis runs a command in the profile's container.

    pyxis hands the job's variables on, except for LANG, LANGUAGE and LC_ALL and for those that the
    image sets itself: there the image's value holds. ``--container-env``, from pyxis 0.15 on, makes
    the job's value hold for the variables it names (those that are not set are left out). An older
    pyxis keeps the image's, and whoever needs another one sets it inside, with ``env NAME=VALUE``.

    The container's own files can be written, where pyxis has a flag for it, and are gone with the
    job step: libraries keep caches there. The home folder is not mounted: packages in it would be
    taken for the container's.

    Args:
        cluster: the profile.
        folders: paths without links that must be there in the container under the same name. The
            first one is the working folder.
        options: flags of ``srun --help`` that begin with ``--container-``, as
            :func:`~cosmos_hpc.backends.slurm.facts.read_facts` finds them; None takes a
            current pyxis for granted.
        environment: names of variables besides the profile's whose value in the job must hold.

    Returns:
        The flags, unquoted; none where the profile has no container or another runtime.

    Raises:
        RequestError: a path that pyxis cannot mount.
    """
    if not _by_pyxis(cluster):
        return []
    has = set(options) if options is not None else {_HOME, _ENVIRONMENT, _WRITABLE}
    names = dict.fromkeys([*cluster.environment, *environment])
    mounted = ",".join(map(str, mounts(cluster, folders)))
    return [
        f"--container-image={image(cluster)}",
        *([f"--container-mounts={mounted}"] if mounted else []),
        *([f"--container-workdir={os.path.abspath(folders[0])}"] if folders else []),
        *(["--no-container-mount-home"] if _HOME in has else []),
        *([_WRITABLE] if _WRITABLE in has else []),
        *([f"{_ENVIRONMENT}={','.join(names)}"] if names and _ENVIRONMENT in has else []),
    ]


def only_inside(cluster: SlurmCluster, code: Path) -> list[str]:
    """Words before a command that end it with one sentence where pyxis has started no container.

    ``srun`` refuses the flags of :func:`srun_flags` where it does not know them. A further node of
    the job that has no pyxis ignores them, and would run the command on the host.

    Args:
        cluster: the profile.
        code: the snapshot of the package, which the container sees.

    Returns:
        The words, unquoted; none where the profile has no container or another runtime.
    """
    return ["sh", _shell(code, "inside.sh"), _SIGN] if _by_pyxis(cluster) else []


def without_leftovers(cluster: SlurmCluster, code: Path) -> list[str]:
    """A command for every node of a job that was queued again, before it starts a container.

    Args:
        cluster: the profile.
        code: the snapshot of the package.

    Returns:
        The words, unquoted; none where the profile has no container or another runtime.
    """
    return ["sh", _shell(code, "leftovers.sh")] if _by_pyxis(cluster) else []


def _shell(code: Path, name: str) -> str:
    """A shell file beside this one, as it is in a snapshot of the package."""
    return str(code / _PACKAGE.name / Path(__file__).with_name(name).relative_to(_PACKAGE))


def _by_pyxis(cluster: SlurmCluster) -> bool:
    return cluster.container is not None and cluster.container_runtime == "pyxis"


def apptainer_command(
    cluster: SlurmCluster, folders: Sequence[str], gpus: bool = True
) -> list[str]:
    """Words before a command that run it in the profile's container with apptainer.

    apptainer hands the job's variables on, except for those that the image sets itself: there the
    image's value holds, unless the job's script has the lines of :func:`apptainer_exports`.

    Args:
        cluster: the profile.
        folders: paths without links that must be there in the container under the same name. The
            first one is the working folder.
        gpus: whether the command uses the GPUs of the job.

    Returns:
        The words, unquoted; none where the profile has no container or another runtime.

    Raises:
        RequestError: a path that apptainer cannot mount.
    """
    if cluster.container is None or cluster.container_runtime != "apptainer":
        return []
    binds = [word for mount in mounts(cluster, folders) for word in ("--bind", str(mount))]
    return [
        *("apptainer", "exec"),
        *(["--nv"] if gpus else []),
        "--no-home",
        *binds,
        *(["--pwd", os.path.abspath(folders[0])] if folders else []),
        image(cluster),
    ]


def apptainer_exports(cluster: SlurmCluster, environment: Sequence[str] = ()) -> list[str]:
    """Lines of shell, before the command, that make values of the job hold against the image's.

    Args:
        cluster: the profile.
        environment: names of variables besides the profile's; none but names end up in the lines.

    Returns:
        A line that keeps apptainer from evaluating the values in a shell, and one line per
        variable, which does nothing where it is not set. None where the profile has no
        container or another runtime.
    """
    if cluster.container is None or cluster.container_runtime != "apptainer":
        return []
    names = dict.fromkeys([*cluster.environment, *environment])
    return [
        "export APPTAINER_NO_EVAL=1",
        *(f'[ -z "${{{name}+set}}" ] || export APPTAINERENV_{name}="${name}"' for name in names),
    ]


def container_problems(cluster: SlurmCluster, facts: Facts) -> list[str]:
    """Why the cluster that this machine belongs to cannot run the profile's container.

    Looks at files, so run it where the cluster's file systems are.

    Returns:
        Sentences for a person; none if nothing speaks against it.
    """
    if cluster.container is None:
        return []
    reasons = _image_reasons(cluster)
    if cluster.container_runtime == "pyxis":
        reasons += _pyxis_reasons(cluster, facts.container_options)
    sources = [_parse(text).source for text in cluster.mounts]
    # os.path's answer is no, not an error, where a folder on the way may not be read.
    reasons += [f"mounts: there is no {p}" for p in sources if not os.path.exists(p)]  # noqa: PTH110
    try:
        runs = mounts(cluster, [cluster.runs])
    except RequestError as e:
        return [*reasons, str(e)]
    return reasons + _runs_reasons(cluster, runs)


def notes(cluster: SlurmCluster, facts: Facts) -> list[str]:
    """Settings of the profile's container that may be mistakes; sentences for a person."""
    if cluster.container is None:
        return []
    if cluster.container_runtime == "apptainer":
        there = shutil.which("apptainer") is not None or bool(cluster.setup)
        return [] if there else ["apptainer is not on the PATH here: setup may have to load it"]
    told = []
    if facts.container_options and _ENVIRONMENT not in facts.container_options:
        told.append(
            f"this pyxis has no {_ENVIRONMENT}: variables that the image sets keep its values"
        )
    if not is_file(cluster) and not _enroot_reasons(cluster.container):
        told.append(
            f"every node imports {cluster.container} for every job; an image imported once to a "
            f".sqsh file starts faster"
        )
    return told


def _pyxis_reasons(cluster: SlurmCluster, options: Collection[str]) -> list[str]:
    if not options:
        return [
            f"container={cluster.container}, but this cluster has no pyxis: srun knows no "
            f"--container-image; set container_runtime to apptainer where there is that, or "
            f"container to null to run on the host's Python"
        ]
    return [
        f"this cluster's pyxis is too old: it has no {flag}"
        for flag in (*_NEEDED, _HOME)
        if flag not in options
    ]


def _image_reasons(cluster: SlurmCluster) -> list[str]:
    name, apptainer = cluster.container or "", cluster.container_runtime == "apptainer"
    if not is_file(cluster):
        return [] if apptainer else _enroot_reasons(name)
    if apptainer and "#" in name:
        right = "docker://" + name.replace("#", "/", 1)
        return [f"container={name}: apptainer's form is {right}"]
    if os.access(image(cluster), os.R_OK):
        return []
    hint = "; apptainer's form for registries is docker://registry/name:tag" if apptainer else ""
    return [f"container {image(cluster)} is not there or not readable{hint}"]


def _enroot_reasons(name: str) -> list[str]:
    scheme, _, rest = name.rpartition("://")
    if scheme not in ("", "docker"):
        return [f"container={name}: pyxis takes a .sqsh file or a name such as registry#name:tag"]
    host, _, path = rest.partition("/")
    # Docker takes a first part with a dot or a port for a registry; enroot asks Docker Hub for it.
    registry = path and "#" not in host and (re.search("[.:]", host) or host == "localhost")
    if scheme or registry:
        right = f"{host}#{path}" if registry else rest
        return [f"container={name}: enroot's form for pyxis is {right}"]
    if not _ENROOT_NAME.fullmatch(name):
        return [f"container={name} is neither a .sqsh file nor a name such as registry#name:tag"]
    return []


def _runs_reasons(cluster: SlurmCluster, mounted: Sequence[Mount]) -> list[str]:
    folder = os.path.abspath(cluster.runs)
    by_target = {mount.target: mount for mount in mounted}
    around = by_target[_innermost(folder, by_target)]
    if "ro" in around.options.split("+"):
        return [f"runs={cluster.runs} cannot be written in the container: mounts has {around}"]
    return []
