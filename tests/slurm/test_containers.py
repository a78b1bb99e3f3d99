"""Containers on a real Slurm: what its commands take, and what arrives on the nodes.

There are no containers here: a plug-in of the tests takes pyxis's options, a script stands in for
apptainer; both write down what they are given, and run the command on the host.
"""

import json
import shlex
import shutil
import stat
import subprocess
import sys

import pytest

from cosmos_hpc.backends.findings import libraries
from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.backends.slurm import containers
from cosmos_hpc.backends.slurm import facts as slurm
from cosmos_hpc.backends.slurm.commands import command
from tests.backends.slurm.test_containers import SIGN
from tests.conftest import squashfs
from tests.slurm.test_profiles import run

ODD = """a 'quoted' "name" $HOME `id` \\ ; & é 漢"""
NAMES = ["HF_HOME", "HF_TOKEN"]


@pytest.fixture(params=["0.20", "0.11"])
def any_pyxis_lab(request):
    """A cluster with a new, and one with an old pyxis."""
    name = {"0.20": "pyxis_lab", "0.11": "old_pyxis_lab"}[request.param]
    return request.getfixturevalue(name)


def profile(tmp_path, *settings):
    path = tmp_path / "box.yaml"
    path.write_text("kind: slurm\ngpu_partition: gpu\ncpu_partition: cpu\nparallel: 4\n")
    return load_cluster(str(path), [f"environment={json.dumps(NAMES)}", *settings])


def options_of(lab, monkeypatch):
    """What the package finds in the lab's srun."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, lab.environment[name])
    return slurm.read_facts().container_options


def batch(lab, tmp_path, *command, before=()):
    """Output of a command in a batch script, behind these lines; its steps in pyxis."""
    script, output = tmp_path / "job.sh", tmp_path / "job.log"
    script.write_text("\n".join(["#!/bin/bash", *before, shlex.join(command), ""]))
    earlier = len(lab.container_steps())
    lab.run("sbatch", "--wait", f"--output={output}", "--nodes=2", str(script))
    return output.read_text(), lab.container_steps()[earlier:]


def test_srun_takes_the_flags_and_their_values_arrive(any_pyxis_lab, tmp_path, monkeypatch):
    lab = any_pyxis_lab
    options = options_of(lab, monkeypatch)
    folder = tmp_path / ODD
    folder.mkdir()
    cluster = profile(tmp_path, f"container=/images/{ODD}.sqsh", f"mounts=['{tmp_path}', /etc:/e]")
    flags = containers.srun_flags(cluster, [str(folder)], options, ["RANK"])
    out, steps = batch(lab, tmp_path, "srun", *flags, "pwd")
    assert out.splitlines() == [str(folder)] * 2
    assert {step["node"] for step in steps} == {"n1", "n2"}
    for step in steps:
        given = dict(step["options"])
        assert given.pop("container-env", None) == (
            "HF_HOME,HF_TOKEN,RANK" if lab.pyxis == "0.20" else None
        )
        assert given == {
            "container-image": f"/images/{ODD}.sqsh",
            "container-mounts": f"{SIGN},/etc:/e,{tmp_path}:{tmp_path}",
            "container-workdir": str(folder),
            "no-container-mount-home": None,
            "container-writable": None,
        }


def test_an_old_pyxis_does_not_know_the_new_flag(old_pyxis_lab, pyxis_lab):
    words = ["srun", "--container-image=/x.sqsh", "--container-env=HF_HOME", "echo", "ran"]
    assert pyxis_lab.run(*words).strip() == "ran"
    assert old_pyxis_lab.run(*words, check=False) == ""


def test_without_pyxis_srun_refuses_and_the_check_says_so(lab, tmp_path, monkeypatch):
    assert options_of(lab, monkeypatch) == set()
    assert lab.run("srun", "--container-image=/x.sqsh", "echo", "ran", check=False) == ""
    image = f"container={sys.executable}"
    assert run(lab, "cluster", "init", "mine", cwd=tmp_path).code == 0
    outcome = run(lab, "cluster", "check", "mine", image, cwd=tmp_path)
    assert outcome.code == 2
    assert "this cluster has no pyxis" in outcome.out


def test_profiles_where_there_is_pyxis(any_pyxis_lab, tmp_path):
    lab, image = any_pyxis_lab, squashfs(tmp_path, "usr/bin/python3")
    proposed = run(lab, "cluster", "init", "mine", cwd=tmp_path)
    assert "image for pyxis: /path/image.sqsh, or registry#name:tag" in proposed.out
    checked = run(lab, "cluster", "check", "mine", f"container={image}", cwd=tmp_path)
    assert checked.code == 0, checked.out
    assert f"container: pyxis, {image}" in checked.out
    assert f"of {image} only /usr/bin/python3 is seen" in checked.out
    assert ("this pyxis has no --container-env" in checked.out) == (lab.pyxis == "0.11")
    wrong = run(lab, "cluster", "check", "mine", "container=nvcr.io/a/b:1", cwd=tmp_path)
    assert wrong.code == 2
    assert "enroot's form for pyxis is nvcr.io#a/b:1" in wrong.out


def test_slurm_s_own_container_flags_are_not_pyxis(lab, tmp_path, monkeypatch):
    newer = tmp_path / "srun"
    srun = shutil.which("srun", path=lab.environment["PATH"])
    newer.write_text(f"#!/bin/sh\necho '      --container-id=ID   of OCI'\nexec {srun} \"$@\"\n")
    newer.chmod(newer.stat().st_mode | stat.S_IXUSR)
    environment = {**lab.environment, "PATH": f"{tmp_path}:{lab.environment['PATH']}"}
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, environment[name])
    assert "--container-id" in command("srun", "--help").stdout
    assert slurm.read_facts().container_options == set()


@pytest.fixture
def stand_in(tmp_path):
    """A script in the place of apptainer, which writes down its words and runs the command."""
    path = tmp_path / "bin" / "apptainer"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, sys\n"
        "pathlib.Path(__file__).with_name('words').write_text(json.dumps(sys.argv[1:]))\n"
        "words = sys.argv[2:]\n"
        "while words[0].startswith('--'):\n"
        "    value = words.pop(1) if words[0] in ('--bind', '--pwd') else ''\n"
        "    if words.pop(0) == '--pwd':\n"
        "        os.chdir(value)\n"
        "os.execvp(words[1], words[1:])\n"
    )
    path.chmod(0o755)
    return path


def test_the_words_of_apptainer_arrive_in_a_job(lab, tmp_path, stand_in):
    folder = tmp_path / ODD
    folder.mkdir()
    settings = (f"container={tmp_path}/{ODD}.sif", "container_runtime=apptainer")
    cluster = profile(tmp_path, *settings, f"mounts=['{tmp_path}']")
    words = containers.apptainer_command(cluster, [str(folder)])
    job = ["srun", "-N1", "-n1", str(stand_in), *words[1:], "printf", "%s|", ODD, "b"]
    out, _ = batch(lab, tmp_path, *job)
    assert out == f"{ODD}|b|"
    given = json.loads(stand_in.with_name("words").read_text())
    assert given == [*words[1:], "printf", "%s|", ODD, "b"]


def test_a_proposal_knows_of_apptainer(lab, tmp_path, stand_in):
    path = f"{stand_in.parent}:{lab.environment['PATH']}"
    proposed = run(lab, "cluster", "init", "mine", cwd=tmp_path, PATH=path)
    assert "host's Python, or with container_runtime: apptainer" in proposed.out
    check = ("container_runtime=apptainer", f"container={sys.executable}")
    python = f"python={sys.executable}"
    checked = run(lab, "cluster", "check", "mine", *check, python, cwd=tmp_path, PATH=path)
    assert checked.code == 0, checked.out
    assert f"container: apptainer, {sys.executable}" in checked.out
    assert f"{sys.executable}'s {sys.executable} has {', '.join(libraries())}" in checked.out
    # One that the image does not have.
    lacking = run(
        lab, "cluster", "check", "mine", *check, "python=/no/python", cwd=tmp_path, PATH=path
    )
    assert lacking.code == 2
    assert "s /no/python does not run: " in lacking.out
    unknown = run(lab, "cluster", "check", "mine", *check, cwd=tmp_path)
    assert "apptainer is not on the PATH here" in unknown.out or shutil.which("apptainer")


_PROBE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int ac, char **av)
{
    char folder[4096];
    FILE *made = fopen("made", "w");
    printf("%s|%s|%s|%s|%d|%d|", getcwd(folder, sizeof folder), ac > 1 ? av[1] : "",
           getenv("PROBED"), getenv("OTHER"), made != NULL, access("/e/passwd", W_OK) == 0);
    printf("%d", getenv("HOME") && access(getenv("HOME"), F_OK) == 0);
    return 0;
}
"""


@pytest.fixture
def image(tmp_path):
    """A folder that is an image with one program: it tells where it is and what it sees."""
    folder, source = tmp_path / "image", tmp_path / "probe.c"
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "var/tmp", ".singularity.d/env"):
        (folder / name).mkdir(parents=True)
    (folder / "etc" / "passwd").write_text("")
    (folder / "etc" / "group").write_text("")
    # Those that apptainer's own images have.
    variables = folder / ".singularity.d" / "env"
    (variables / "90-environment.sh").write_text("export PROBED=image OTHER=image\n")
    (variables / "99-base.sh").write_text("export PATH=/bin\n")
    (variables / "99-runtimevars.sh").write_text("")
    source.write_text(_PROBE)
    subprocess.run(["gcc", "-static", "-o", folder / "bin" / "probe", source], check=True)
    return folder


@pytest.mark.skipif(not shutil.which("apptainer"), reason="apptainer is not installed")
def test_a_command_in_apptainer_itself(lab, tmp_path, image, monkeypatch):
    folder = tmp_path / "a 'quoted' \"name\" $HOME `id` ; & é 漢"
    folder.mkdir()
    settings = (f"container={image}", "container_runtime=apptainer", "mounts=['/etc:/e:ro']")
    cluster = profile(tmp_path, *settings)
    words = containers.apptainer_command(cluster, [str(folder)], gpus=False)
    for name, value in {"PROBED": ODD, "OTHER": "job's", "HOME": "/home"}.items():
        monkeypatch.setitem(lab.environment, name, value)
    lines = containers.apptainer_exports(cluster, ["PROBED"])
    job = ["srun", "-N1", "-n1", *words, "/bin/probe", ODD]
    out, _ = batch(lab, tmp_path, *job, before=lines)
    assert out.splitlines()[-1] == f"{folder}|{ODD}|{ODD}|image|1|0|0"
    assert (folder / "made").exists()
