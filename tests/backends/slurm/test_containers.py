"""What a profile's container becomes on a command line; the cluster is in tests/slurm."""

import os
import subprocess
import sys

import pytest

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.backends.slurm import containers
from cosmos_hpc.backends.slurm.facts import Facts
from cosmos_hpc.errors import RequestError

OLD = {f"--container-{name}" for name in ("image", "mounts", "workdir", "mount-home")}
NEW = OLD | {f"--container-{name}" for name in ("writable", "readonly", "env")}


@pytest.fixture
def profile(tmp_path):
    """Loads a profile of a Slurm cluster with these settings."""
    path = tmp_path / "box.yaml"
    path.write_text("kind: slurm\ngpu_partition: gpu\ncpu_partition: cpu\nparallel: 4\n")

    def load(*settings):
        return load_cluster(str(path), settings)

    return load


def facts(options=frozenset(NEW)):
    return Facts("lab", "22.05.8", 1001, False, [], {}, None, set(options))


#: By which a command tells that it is in a container.
SIGN = "/dev/null:/cosmos-hpc-container"


def flag(flags, name):
    """The value of a flag; it may be there once."""
    (found,) = [f.partition("=")[2] for f in flags if f.partition("=")[0] == name]
    return found


def mounted(flags):
    """What is mounted besides the sign, in order."""
    found = flag(flags, "--container-mounts").split(",")
    found.remove(SIGN)
    return ",".join(found)


def test_a_container_s_python_is_its_own(profile):
    assert profile().python == sys.executable
    assert profile("container=/x.sqsh").python == "python3"
    assert profile("container=/x.sqsh", "python=/opt/venv/bin/python").python.startswith("/opt")
    assert profile("python=null").python == sys.executable


def test_without_a_container_there_are_no_flags(profile):
    for cluster in (profile(), profile("container_runtime=apptainer")):
        assert containers.srun_flags(cluster, ["/runs"], NEW) == []
        assert containers.apptainer_command(cluster, ["/runs"]) == []
        assert containers.container_problems(cluster, facts(())) == []


def test_flags_for_pyxis(profile):
    cluster = profile("container=/images/a b.sqsh", "environment=[HF_HOME, HF_TOKEN]")
    assert containers.srun_flags(cluster, ["/runs/x", "/videos"], NEW, ["HF_TOKEN", "RANK"]) == [
        "--container-image=/images/a b.sqsh",
        f"--container-mounts={SIGN},/runs/x:/runs/x,/videos:/videos",
        "--container-workdir=/runs/x",
        "--no-container-mount-home",
        "--container-writable",
        "--container-env=HF_HOME,HF_TOKEN,RANK",
    ]
    current = containers.srun_flags(cluster, ["/runs/x"])
    assert current == containers.srun_flags(cluster, ["/runs/x"], NEW)
    old = containers.srun_flags(cluster, ["/runs/x"], OLD)
    assert [f for f in current if f not in old] == [
        "--container-writable",
        "--container-env=HF_HOME,HF_TOKEN",
    ]
    assert containers.apptainer_command(cluster, ["/runs/x"]) == []


@pytest.mark.parametrize(
    ("own", "folders", "expected"),
    [
        ("[/a, /b:/c:ro]", [], "/a:/a,/b:/c:ro"),
        ("[]", ["/runs/x", "/runs/x", "/runs/x/"], "/runs/x:/runs/x"),
        # What lies below a mount is there already, unless it is another folder's.
        ("[/s]", ["/s/me/runs", "/s2"], "/s:/s,/s2:/s2"),
        ("[]", ["/v/train", "/v"], "/v:/v"),
        ("[/fast:/s]", ["/s/x"], "/fast:/s,/s/x:/s/x"),
        ("[/s, /fast:/s/me]", ["/s/me/x"], "/s:/s,/fast:/s/me,/s/me/x:/s/me/x"),
        # The profile's mount of the same target wins.
        ("[/fast/:/runs/]", ["/runs"], "/fast:/runs"),
        # A parent behind its child would hide it.
        ("[/fast:/shared/cache]", ["/shared"], "/shared:/shared,/fast:/shared/cache"),
    ],
)
def test_what_is_mounted(profile, own, folders, expected):
    cluster = profile("container=/x.sqsh", f"mounts={own}")
    assert mounted(containers.srun_flags(cluster, folders, NEW)) == expected


@pytest.mark.parametrize("wrong", ["a b", "a,b", "a:b", "a$(b)", "a`b`", 'a"b', "a\\b", "a\nb"])
def test_paths_that_pyxis_cannot_mount(profile, wrong):
    cluster = profile("container=/x.sqsh")
    with pytest.raises(RequestError, match="pyxis cannot mount"):
        containers.srun_flags(cluster, ["/ok", f"/runs/{wrong}"], NEW)
    (reason,) = containers.container_problems(
        profile(f"container={sys.executable}", f"runs=/{wrong}"), facts()
    )
    assert "pyxis cannot mount" in reason
    # Below a mounted folder it does not matter.
    inside = profile("container=/x.sqsh", "mounts=[/runs]")
    flags = containers.srun_flags(inside, [f"/runs/{wrong}"], NEW)
    assert mounted(flags) == "/runs:/runs"
    assert flag(flags, "--container-workdir") == f"/runs/{wrong}"


def test_paths_that_apptainer_cannot_mount(profile):
    cluster = profile("container=/x.sif", "container_runtime=apptainer")
    for wrong in ("a,b", "a:b", "a\\b"):
        with pytest.raises(RequestError, match="apptainer cannot mount"):
            containers.apptainer_command(cluster, [f"/runs/{wrong}"])
    with pytest.raises(RequestError, match="mounts: /"):
        containers.apptainer_command(cluster, ["/"])
    odd = profile("container=/x.sif", "container_runtime=apptainer", "mounts=['/a:/b:rprivate']")
    with pytest.raises(RequestError, match="apptainer knows the options ro and rw only"):
        containers.apptainer_command(odd, [])


def test_a_command_line_of_apptainer(profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cluster = profile(
        "container=my image.sif", "container_runtime=apptainer", "mounts=['/data:/in:ro']"
    )
    assert containers.apptainer_command(cluster, ["/runs/a b", "/videos"]) == [
        "apptainer",
        "exec",
        "--nv",
        "--no-home",
        "--bind",
        "/data:/in:ro",
        "--bind",
        "/runs/a b:/runs/a b",
        "--bind",
        "/videos:/videos",
        "--pwd",
        "/runs/a b",
        str(tmp_path / "my image.sif"),
    ]
    assert "--nv" not in containers.apptainer_command(cluster, [], gpus=False)
    registry = profile("container=docker://nvcr.io/nvidia/nemo:1", "container_runtime=apptainer")
    assert containers.apptainer_command(registry, [])[-1] == "docker://nvcr.io/nvidia/nemo:1"
    assert containers.srun_flags(cluster, ["/runs"], NEW) == []


def test_values_of_the_job_hold_in_apptainer(profile):
    names = "environment=[SET, EMPTY, UNSET]"
    cluster = profile("container=/x.sif", "container_runtime=apptainer", names)
    lines = containers.apptainer_exports(cluster, ["SET", "MORE"])
    shell = "\n".join(["set -eu", *lines, "env"])
    job = {"PATH": os.environ["PATH"], "SET": 'a "b" $c', "EMPTY": "", "MORE": "d"}
    out = subprocess.run(["bash", "-c", shell], env=job, capture_output=True, text=True, check=True)
    prefix = "APPTAINERENV_"
    found = {line for line in out.stdout.splitlines() if line.startswith(prefix)}
    assert found == {f'{prefix}SET=a "b" $c', f"{prefix}EMPTY=", f"{prefix}MORE=d"}
    assert not any("a " in line for line in lines)
    assert containers.apptainer_exports(profile("container=/x.sqsh", names)) == []


def test_an_image_file_is_named_by_its_absolute_path(profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for name, expected in {
        "a.sqsh": str(tmp_path / "a.sqsh"),
        "./a": str(tmp_path / "a"),
        "~/a.sqsh": "/home/me/a.sqsh",
        "nvcr.io#nvidia/nemo:25.02": "nvcr.io#nvidia/nemo:25.02",
        "ubuntu": "ubuntu",
    }.items():
        flags = containers.srun_flags(profile(f"container={name}"), [], NEW)
        assert flag(flags, "--container-image") == expected


@pytest.mark.parametrize(
    ("runtime", "name", "expected"),
    [
        ("pyxis", "nvcr.io#nvidia/nemo:25.02", None),
        ("pyxis", "me@host:5000#a/b:1", None),
        ("pyxis", "ubuntu:24.04", None),
        ("pyxis", "docker://nvcr.io#nvidia/nemo:1", "form for pyxis is nvcr.io#nvidia/nemo:1"),
        ("pyxis", "docker://nvcr.io/nvidia/nemo:1", "form for pyxis is nvcr.io#nvidia/nemo:1"),
        ("pyxis", "nvcr.io/nvidia/nemo:1", "form for pyxis is nvcr.io#nvidia/nemo:1"),
        ("pyxis", "localhost/a", "form for pyxis is localhost#a"),
        ("pyxis", "docker://ubuntu", "form for pyxis is ubuntu"),
        ("pyxis", "oras://a/b", "takes a .sqsh file or a name such as registry#name:tag"),
        ("pyxis", "Nemo Image", "neither a .sqsh file nor a name such as registry#name:tag"),
        ("pyxis", "/no/a.sqsh", "container /no/a.sqsh is not there or not readable"),
        ("apptainer", "docker://nvcr.io/nvidia/nemo:1", None),
        ("apptainer", "nvcr.io#nvidia/nemo:1", "form is docker://nvcr.io/nvidia/nemo:1"),
        ("apptainer", "nvcr.io/nvidia/nemo:1", "registries is docker://registry/name:tag"),
    ],
)
def test_the_form_of_an_image_s_name(profile, runtime, name, expected):
    cluster = profile(f"container={name}", f"container_runtime={runtime}")
    reasons = containers.container_problems(cluster, facts())
    assert len(reasons) == (expected is not None), reasons
    assert expected is None or expected in reasons[0]


def test_what_else_speaks_against_a_container(profile, tmp_path):
    image = f"container={sys.executable}"
    assert containers.container_problems(profile(image), facts()) == []
    (reason,) = containers.container_problems(profile(image), facts(()))
    assert "this cluster has no pyxis" in reason
    (reason,) = containers.container_problems(profile(image), facts(NEW - {"--container-workdir"}))
    assert "pyxis is too old: it has no --container-workdir" in reason
    (reason,) = containers.container_problems(profile(image, "mounts=[/no/such]"), facts())
    assert reason == "mounts: there is no /no/such"
    settings = (f"runs={tmp_path}/runs", f"mounts=['{tmp_path}:{tmp_path}:ro']")
    (reason,) = containers.container_problems(profile(image, *settings), facts())
    assert "cannot be written in the container" in reason
    # apptainer needs no pyxis.
    assert (
        containers.container_problems(profile(image, "container_runtime=apptainer"), facts(()))
        == []
    )


def test_what_may_be_meant_so(profile, monkeypatch):
    apptainer = ("container=/x.sif", "container_runtime=apptainer")
    monkeypatch.setenv("PATH", "/nowhere")
    (note,) = containers.notes(profile(*apptainer), facts())
    assert "apptainer is not on the PATH here" in note
    assert containers.notes(profile(*apptainer, "setup=['module load apptainer']"), facts()) == []
    (note,) = containers.notes(profile("container=/x.sqsh"), facts(OLD))
    assert "no --container-env" in note
    assert containers.notes(profile("container=/x.sqsh"), facts()) == []
    (note,) = containers.notes(profile("container=ubuntu"), facts())
    assert "every node imports ubuntu" in note


@pytest.mark.parametrize("wrong", ["a:/b", "/a:b", "/a:", "/a:/b:ro:x", "/a,/b", "/a:/b:"])
def test_mounts_that_are_none(profile, wrong):
    with pytest.raises(RequestError, match="is not a mount; write /from:/to"):
        profile("container=/x.sqsh", f"mounts=['{wrong}']")


def test_a_relative_folder_is_the_submitter_s(profile):
    flags = containers.srun_flags(profile("container=/x.sqsh"), ["runs"], NEW)
    assert flag(flags, "--container-workdir") == os.path.abspath("runs")
