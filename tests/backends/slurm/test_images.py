"""What ``cluster check`` sees in an image."""

import sys

import pytest

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.backends.slurm.images import python_findings
from tests.conftest import executables, squashfs


@pytest.fixture
def look(tmp_path):
    """Looks at the image of a profile of these settings."""
    path = tmp_path / "box.yaml"
    path.write_text("kind: slurm\ngpu_partition: gpu\ncpu_partition: cpu\nparallel: 4\n")

    def found(*settings):
        (finding,) = python_findings(load_cluster(str(path), settings))
        return finding.level, finding.text

    return found


def test_the_python_of_a_squashfs_image(look, tmp_path):
    image = squashfs(
        tmp_path, "opt/v/bin/python3", "usr/bin/python3.11", path="/opt/v/bin:/usr/bin"
    )
    level, text = look(f"container={image}")
    assert level == "note"
    assert f"of {image} only /opt/v/bin/python3 is seen" in text
    assert f"srun --partition=gpu --container-image={image} python3 -c 'import torch, av," in text
    assert look(f"container={image}", "python=/usr/bin/python3.11")[0] == "note"
    level, text = look(f"container={image}", "python=python3.11", "mounts=[/usr/bin:/opt/other]")
    assert "only /usr/bin/python3.11 is seen" in text
    for python, places in {
        "python": "/opt/v/bin/python, /usr/bin/python",
        "/opt/p": "/opt/p",
    }.items():
        level, text = look(f"container={image}", f"python={python}")
        assert level == "problem"
        assert f"{image} has no {python} in {places}" in text


def test_links_are_not_followed_and_that_is_said(look, tmp_path):
    (tmp_path / "content" / "opt").mkdir(parents=True)
    (tmp_path / "content" / "opt" / "venv").symlink_to("../srv/v2")
    (tmp_path / "content" / "bin").symlink_to("usr/bin")
    image = squashfs(tmp_path, "srv/v2/bin/python", path="/usr/bin:/bin")
    level, text = look(f"container={image}", "python=/opt/venv/bin/python")
    assert level == "note"
    assert f"in {image} it may lie behind /opt/venv -> ../srv/v2" in text
    # There it was looked as well.
    assert look(f"container={image}")[0] == "problem"


def test_a_python_in_a_mount_is_looked_for_outside(look, tmp_path):
    executables(tmp_path / "venv", python="")
    words = ("container=nvcr.io#nvidia/nemo:1", f"mounts=['{tmp_path}/venv:/venv']")
    assert look(*words, "python=/venv/python") == (
        "ok",
        f"python=/venv/python, which is {tmp_path}/venv/python here, is there",
    )
    assert look(*words, "python=/venv/python4")[0] == "problem"


def test_files_that_are_no_images(look, tmp_path):
    image = squashfs(tmp_path, *(f"usr/lib/{n}" for n in range(400)))
    whole = image.read_bytes()
    for wrong, expected in {
        whole[:2000]: f"{image} is cut off, 2000 of ",
        whole[:20]: "is no squashfs image",
        b"": "is no squashfs image",
        b"x" + whole: "is no squashfs image",
    }.items():
        image.write_bytes(wrong)
        level, text = look(f"container={image}")
        assert (level, expected in text) == ("problem", True), text


def test_where_nothing_can_be_seen_that_is_said(look, tmp_path, monkeypatch):
    image = squashfs(tmp_path, "usr/bin/python3")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    for words, why in {
        (f"container={image}",): "unsquashfs, of squashfs-tools, is not on the PATH",
        ("container=nvcr.io#a/b:1",): "nvcr.io#a/b:1 is fetched by the job",
        ("container=docker://a", "container_runtime=apptainer"): "docker://a is fetched by the job",
        (f"container={sys.executable}", "container_runtime=apptainer"): "apptainer is not on",
    }.items():
        level, text = look(*words)
        assert (level, why in text) == ("note", True), text
