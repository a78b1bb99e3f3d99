"""What is in the image of a profile, as far as this machine can see."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cosmos_hpc.backends.findings import Finding, libraries, python_finding
from cosmos_hpc.backends.slurm import containers
from cosmos_hpc.backends.slurm.profile import SlurmCluster

#: Prints which of the libraries that it is given the Python that runs it lacks.
_LACKS = (
    "import sys, importlib.util as u; "
    "print('lacks:', *(n for n in sys.argv[1:] if not u.find_spec(n)))"
)
#: Seconds that looking into an image may take.
_SECONDS = 120
#: Where a program is searched if the image does not say.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: First bytes of a squashfs file; 40 bytes after them, how many it must have.
_SQUASHFS, _SIZE_AT = b"hsqs", 40


def python_findings(cluster: SlurmCluster) -> Iterator[Finding]:
    """Whether the Python of a profile's container is there, and has what the stages import."""
    host = _on_host(cluster)
    if host is not None:
        there = os.access(host, os.X_OK)
        text = f"python={cluster.python}, which is {host} here, "
        yield Finding("ok" if there else "problem", text + ("is there" if there else "is not"))
    elif not containers.is_file(cluster):
        yield _unknown(cluster, f"{cluster.container} is fetched by the job")
    elif cluster.container_runtime == "apptainer":
        yield _by_apptainer(cluster)
    else:
        yield from _in_squashfs(cluster, Path(containers.image(cluster)))


def lacking(*python: str) -> list[str]:
    """Which libraries of the stages a Python lacks, by the words that run it.

    Raises:
        OSError, ValueError: it does not run here; says why.
    """
    words = [*python, "-c", _LACKS, *libraries()]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it has not answered for {_SECONDS} s") from None
    # Some sites greet first.
    found = re.search(r"^lacks:(.*)$", done.stdout, re.M)
    if done.returncode or not found:
        raise ValueError("; ".join(done.stderr.strip().splitlines()[-3:]) or "it says nothing")
    return found[1].split()


def _on_host(cluster: SlurmCluster) -> str | None:
    """A Python in one of the profile's mounts, by its path outside; None for one of the image."""
    if not cluster.python.startswith("/"):
        return None
    around = containers.mount_around(cluster, cluster.python)
    return None if around is None else around.source + cluster.python[len(around.target) :]


def _unknown(cluster: SlurmCluster, why: str) -> Finding:
    names = ", ".join(libraries())
    if cluster.container_runtime == "pyxis":
        runs = ["srun", f"--partition={cluster.gpu_partition}"]
        runs += [f"--container-image={containers.image(cluster)}"]
    else:
        runs = ["apptainer", "exec", containers.image(cluster)]
    return Finding(
        "note",
        f"container: whether its {cluster.python} has {names} is not seen here: {why}; a job "
        f"tells: {shlex.join([*runs, cluster.python, '-c', f'import {names}'])}",
    )


def _by_apptainer(cluster: SlurmCluster) -> Finding:
    words = containers.apptainer_command(cluster, [], gpus=False)
    if shutil.which(words[0]) is None:
        return _unknown(cluster, "apptainer is not on the PATH")
    python = f"{cluster.container}'s {cluster.python}"
    try:
        return python_finding(python, lacking(*words, cluster.python))
    except ValueError as e:
        return Finding("problem", f"container: {python} does not run: {e}")
    except OSError as e:
        return _unknown(cluster, f"apptainer does not run here: {e}")


def _in_squashfs(cluster: SlurmCluster, image: Path) -> Iterator[Finding]:
    with open(image, "rb") as f:
        head = f.read(_SIZE_AT + 8)
    if not head.startswith(_SQUASHFS) or len(head) < _SIZE_AT + 8:
        yield Finding("problem", f"container: {image} is no squashfs image, as enroot makes them")
        return
    (size,) = struct.unpack_from("<Q", head, _SIZE_AT)
    if (length := image.stat().st_size) < size:
        yield Finding("problem", f"container: {image} is cut off, {length} of {size} bytes")
        return
    if shutil.which("unsquashfs") is None:
        yield _unknown(cluster, "unsquashfs, of squashfs-tools, is not on the PATH")
        return
    places = [cluster.python]
    if "/" not in cluster.python:
        said = _unsquashfs("-cat", str(image), "etc/environment")
        of_image = re.search(r"^PATH=[\"']?([^\"'\n]+)", said, re.M)
        folders = (of_image[1] if of_image else _PATH).split(":")
        places = [posixpath.join(folder, cluster.python) for folder in folders]
    found = _listed(image, places)
    if there := [place for place in places if place in found]:
        yield _unknown(cluster, f"of {image} only {there[0]} is seen")
    elif links := [f"{link} -> {found[link]}" for link in found if _leads_on(link, found, places)]:
        yield _unknown(cluster, f"in {image} it may lie behind {', '.join(links)}")
    else:
        yield Finding(
            "problem",
            f"container: {image} has no {cluster.python} in {', '.join(places)}; "
            f"python: in the profile names the image's own",
        )


def _leads_on(link: str, found: dict[str, str], places: list[str]) -> bool:
    """Whether something is a link to a folder where nobody has looked."""
    if not found[link]:
        return False
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(link), found[link]))
    return not any(place.startswith(f"{folder}/") for place in places)


def _listed(image: Path, places: list[str]) -> dict[str, str]:
    """What an image has of some paths and the folders above them; of links, where they lead."""
    wanted = {str(p) for place in places for p in (Path(place), *Path(place).parents[:-1])}
    listed = _unsquashfs("-ll", str(image), *(path.lstrip("/") for path in sorted(wanted)))
    rows = (line.partition(" squashfs-root")[2] for line in listed.splitlines())
    return {path: target for path, _, target in (row.partition(" -> ") for row in rows) if path}


def _unsquashfs(*words: str) -> str:
    """What it prints; nothing where it fails, as for a file that is not there."""
    done = subprocess.run(
        ["unsquashfs", *words], capture_output=True, text=True, timeout=_SECONDS, errors="replace"
    )
    return done.stdout
