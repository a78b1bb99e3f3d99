"""Dry runs on a machine that belongs to no cluster: its PATH has none of Slurm's commands."""

import shutil
import subprocess

import pytest

import cosmos_hpc as ch
from cosmos_hpc.utils import files
from tests.conftest import cosmos_hpc, executables

FLAGS = ["cluster.kind=slurm", "cluster.gpu_partition=gpu"]


@pytest.fixture
def away(tmp_path, monkeypatch, scenes):
    """An empty folder to work in; returns a request's data."""
    bash = shutil.which("bash")
    monkeypatch.setenv("PATH", str(executables(tmp_path / "bin")))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return bash, [*FLAGS, f"data.input={scenes}"]


def test_flags_alone_are_a_profile_and_what_was_not_checked_is_said(away, tmp_path):
    bash, request = away
    # More disk than there is here, and nothing of the Hub: neither is that of the cluster.
    plain = ch.submit("ar4b", overrides=[*request, "cluster.gpu=H100-80"], name="x", dry_run=True)
    assert "#SBATCH --partition=gpu\n" in plain.dry_run
    said = next(line for line in plain.dry_run.splitlines() if "Not checked" in line)
    for what in ("partitions", "account", "MaxArraySize", "disk", "HF_HOME"):
        assert what in said
    subprocess.run([bash, "-n"], input=plain.dry_run, text=True, check=True)
    # Nothing of it was begun: the next request may be another one.
    boxed = ch.submit(
        "ar_tiny",
        overrides=[*request, "cluster.container=x.sqsh", "cluster.max_submit=9"],
        name="x",
        dry_run=True,
        output="scripts",
    )
    assert (tmp_path / "home/scripts/submit.sh").is_file()
    assert "scripts/submit.sh" in boxed.dry_run
    script = (tmp_path / "home/scripts/submit.sh").read_text()
    assert "container=x.sqsh" in script
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["runs", "scripts"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dry_run": False}, "is not on the PATH"),
        ({"dry_run": True, "output": "/sys/scripts"}, "permission denied"),
        ({"dry_run": True, "stages": ["train"]}, "--stages download,preprocess,finalize,train"),
    ],
)
def test_what_is_refused_leaves_nothing(away, tmp_path, options, says):
    with pytest.raises(ch.RequestError, match=says):
        ch.submit("ar_tiny", overrides=away[1], name="x", **options)
    assert not [*(tmp_path / "home").iterdir()]


def test_commands_of_slurm_without_a_controller_are_no_cluster_either(away, tmp_path):
    """Not even where the run is prepared already, whose jobs would be asked for."""
    for name in ("sbatch", "scontrol", "squeue"):
        executables(tmp_path / "bin", **{name: f"echo '{name}: fatal: no source' >&2; exit 1"})
    request = [*away[1], "cluster.max_submit=9"]
    said = "Not checked, as Slurm does not answer here (scontrol show failed: fatal: no source): "
    for steps in (3, 4):  # the second is another request
        words = [*request, f"train.max_steps={steps}"]
        shown = ch.submit("ar_tiny", overrides=words, name="x", dry_run=True)
        assert said in shown.dry_run and "jobs in the queue" in shown.dry_run
    files.append_jsonl(shown.folder.jobs, {"stage": "download", "job": "7", "cluster": "lab"})
    with pytest.raises(ch.RequestError, match=r"Slurm does not answer here \(scontrol show failed"):
        ch.submit("ar_tiny", overrides=request, name="x", dry_run=True)
    with pytest.raises(ch.RequestError, match="scontrol show failed: fatal: no source$"):
        ch.submit("ar_tiny", overrides=request, name="y")


def test_on_the_command_line(away, tmp_path):
    words = ("submit", "recipe=ar_tiny", *away[1], "--dry-run", "--name", "x")
    shown = cosmos_hpc(*words, cwd=tmp_path / "home")
    assert shown.code == 0, shown.err
    assert "# ar_tiny on slurm" in shown.out
    assert "Not checked" in shown.out
