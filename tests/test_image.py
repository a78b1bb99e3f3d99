"""The files that an image is made of, and the script that imports one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "containers"
#: Of the container's Python.
CONTAINER = {"python_full_version": "3.12.3", "python_version": "3.12", "sys_platform": "linux"}


def _names(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def test_locked_versions_are_those_that_are_tested() -> None:
    tested = {}
    for line in _names(REPOSITORY / "constraints.txt"):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(CONTAINER):
            tested[requirement.name] = str(requirement.specifier)
    text = (FOLDER / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)(==\S+) \\$", text, re.MULTILINE))
    assert list(locked) == sorted(_names(FOLDER / "requirements.in"))
    assert locked == {name: tested[name] for name in locked}
    for entry in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    # Built for the container's own CUDA; never to be replaced.
    assert not {"torch", "numpy", "triton", "transformer-engine"} & locked.keys()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="for the container's Python, which is 3.12")
def test_the_image_is_checked_for_what_python_would_import(tmp_path: Path) -> None:
    """Here the locked versions are installed as well, as they are what is tested."""

    def check(**environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(FOLDER / "check.py")]
        env = {**os.environ, **environment}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)

    done = check()
    assert done.returncode == 0, done.stdout
    # As the containers do it: a checkout that comes first.
    (tmp_path / "megatron" / "core").mkdir(parents=True)
    for folder in ("megatron", "megatron/core"):
        (tmp_path / folder / "__init__.py").touch()
    done = check(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert f"problem  megatron.core comes from {tmp_path}" in done.stdout


def _import(
    *arguments: object, path: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run import.sh; without ``path`` no enroot is found."""
    env = {"PATH": f"{path or ''}:/usr/bin:/bin", **environment}
    command = ["bash", str(FOLDER / "import.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


def test_import_refuses_what_cannot_be(tmp_path: Path) -> None:
    target = tmp_path / "x.sqsh"

    def refused(*arguments: object, **environment: str) -> str:
        done = _import(*arguments, **environment)
        assert done.returncode == 2, done.stderr
        assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["there.sqsh"])
        return done.stderr

    image = "nvcr.io/nvidia/nemo:26.02"
    assert "usage: " in refused(image)
    assert "names no image" in refused("-x", target)
    assert "names no image" in refused("a image", target)
    said = refused("docker://me:hunter2@nvcr.io#nvidia/nemo:26.02", target)
    assert "holds a password" in said and "hunter2" not in said
    assert "does not end in .sqsh" in refused(image, tmp_path / "x")
    assert "there is no folder" in refused(image, tmp_path / "no" / "x.sqsh")
    assert "not a number" in refused(image, target, FREE_GB="plenty")
    assert "999999999 may be needed" in refused(image, target, FREE_GB="999999999")
    assert "enroot is not installed" in refused(image, target, FREE_GB="0")
    (tmp_path / "there.sqsh").write_text("mine")
    assert "there already" in refused(image, tmp_path / "there.sqsh", FREE_GB="0")
    assert (tmp_path / "there.sqsh").read_text() == "mine"


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A program that is called as enroot is: enroot itself comes in no Debian package.

    It says what it was told in the place of an image, and fails for images called broken.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "enroot"
    program.write_text(
        '#!/bin/bash\n[ "$1 $2 $4" = "import --output --" ] && [ $# = 5 ] || exit 64\n'
        'printf "%s\\n" "$5" "$ENROOT_TEMP_PATH" "$ENROOT_CACHE_PATH" > "$3"\n'
        '[ -d "$ENROOT_TEMP_PATH" ] && [ -d "$ENROOT_CACHE_PATH" ] && [[ $5 != *broken* ]]\n'
    )
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("image", "uri"),
    [
        ("nvcr.io/nvidia/nemo:26.02", "docker://nvcr.io#nvidia/nemo:26.02"),
        ("localhost:5000/nemo", "docker://localhost:5000#nemo"),
        ("ubuntu:24.04", "docker://ubuntu:24.04"),
        ("me/my.image:1", "docker://me/my.image:1"),
        ("dockerd://cosmos-hpc:26.02", "dockerd://cosmos-hpc:26.02"),
    ],
)
def test_import_names_the_image_as_enroot_does(
    tmp_path: Path, stand_in: Path, image: str, uri: str
) -> None:
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    target = folder / "x y.sqsh"
    done = _import(image, target, path=str(stand_in), FREE_GB="0")
    assert done.returncode == 0, done.stderr
    told, temporary, cache = target.read_text().splitlines()
    assert told == uri
    assert Path(temporary).parent == Path(cache).parent == folder / ".x y.sqsh.importing"
    assert list(folder.iterdir()) == [target]
    assert f"container: {target}" in done.stdout


def test_import_leaves_nothing_half(tmp_path: Path, stand_in: Path) -> None:
    folder, scratch = tmp_path / "images", tmp_path / "scratch"
    folder.mkdir()
    target = folder / "x.sqsh"
    done = _import("broken", target, path=str(stand_in), FREE_GB="0")
    assert done.returncode == 1 and "could not import docker://broken" in done.stderr
    assert list(folder.iterdir()) == []
    # Another import of the same file runs.
    (folder / ".x.sqsh.importing").mkdir()
    done = _import("good", target, path=str(stand_in), FREE_GB="0")
    assert done.returncode == 2 and "another import runs" in done.stderr
    (folder / ".x.sqsh.importing").rmdir()
    place = {"ENROOT_TEMP_PATH": str(scratch / "tmp"), "ENROOT_CACHE_PATH": str(scratch / "cache")}
    assert _import("good", target, path=str(stand_in), FREE_GB="0", **place).returncode == 0
    assert target.read_text().splitlines()[1:] == list(place.values())
