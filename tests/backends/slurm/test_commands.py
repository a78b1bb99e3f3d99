"""What Slurm's commands say on a bad day, read as a person would."""

import os
import re
from pathlib import Path

import pytest

from cosmos_hpc.backends.slurm import commands, submit
from cosmos_hpc.backends.slurm.facts import read_facts
from cosmos_hpc.backends.slurm.queue import read_queue
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console
from cosmos_hpc.utils.settings import dump_yaml
from tests.conftest import executables

BUSY = "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1"
ROW = r"printf '%s\x1f%s\x1f%s\x1f%s\x1f%s\x1f%s\n'"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Makes commands of Slurm, each by its text in bash; ``$CALLS`` counts what it is given."""
    monkeypatch.setattr(commands, "_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.01)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def make(**texts):
        texts = {name: f'echo "$0 $*" >>"$CALLS"\n{text}' for name, text in texts.items()}
        folder = executables(tmp_path / "bin", **texts)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return make


def calls(tmp_path, name):
    lines = (tmp_path / "calls").read_text().splitlines()
    return [line for line in lines if line.split()[0].endswith(f"/{name}")]


def after(number, text, otherwise):
    """Shell text that says something else until it was called so often."""
    return f'if [ "$(grep -c "^$0 " "$CALLS")" -gt {number} ]; then {text}; else {otherwise}; fi'


def test_a_busy_slurm_is_asked_again(slurm, tmp_path):
    slurm(squeue=after(2, f"{ROW} 7 x '' PENDING None N/A", BUSY))
    assert [job.id for job in commands.queued(["x"])] == ["7"]
    assert len(calls(tmp_path, "squeue")) == 3


def test_a_slurm_that_stays_busy_is_one_sentence(slurm):
    slurm(squeue=BUSY)
    with pytest.raises(RequestError, match="squeue failed: slurm_load_jobs error: Socket timed"):
        commands.queued(["x"])


def test_what_a_busy_sbatch_has_taken_all_the_same_is_not_submitted_twice(slurm, tmp_path):
    slurm(
        sbatch="echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1",
        squeue=f"{ROW} 8 x '' PENDING None N/A; {ROW} 5 x '' PENDING None N/A",
    )
    assert commands.sbatch(tmp_path / "x.sh", [], "x", known={"5"}) == "8"
    assert len(calls(tmp_path, "sbatch")) == 1


def test_what_it_takes_a_moment_later_is_not_submitted_twice_either(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(commands.time, "sleep", lambda _: (tmp_path / "later").touch())
    slurm(
        sbatch="echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1",
        squeue=f"[ ! -e {tmp_path}/later ] || {ROW} 8 x '' PENDING None N/A",
    )
    assert commands.sbatch(tmp_path / "x.sh", [], "x") == "8"
    assert len(calls(tmp_path, "sbatch")) == 1


def test_whether_it_would_take_a_job_is_asked_again(slurm, tmp_path):
    busy = "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    slurm(sbatch=after(2, "true", busy))
    assert commands.job_refusal("x.sh") is None
    assert len(calls(tmp_path, "sbatch")) == 3


def test_jobs_that_a_busy_slurm_does_not_cancel_are_no_cancelled_ones(slurm):
    slurm(scancel=BUSY)
    with pytest.raises(RequestError, match="scancel failed: .*Socket timed out"):
        commands.cancel(["7"])


def test_greetings_in_colours_and_in_any_encoding(slurm, tmp_path):
    hello = r"printf '\033[1;32mGr\xfc\xdfe | 42\033[0m\n'"
    slurm(
        squeue=rf"{hello}; {ROW} 7 x $'\xe9' PENDING None N/A; {hello}",
        sbatch=rf"{hello} >&2; printf '\033[1m12;c\033[0m\n'; {hello}",
    )
    assert [job.id for job in commands.queued(["x"])] == ["7"]
    assert commands.sbatch(tmp_path / "x.sh", [], "x") == "12"
    slurm(sbatch=r"printf '\033[31mno\033[0m\n' >&2; exit 1")
    assert commands.job_refusal("x.sh") == "no"


def test_all_of_a_reason_is_shown():
    """A site's plug-in speaks before Slurm does."""
    text = "sbatch: error: gpu takes an hour at most\nsbatch: error: see wiki.site.org\n"
    text += "allocation failure: Unspecified error\n"
    assert commands.reason(text) == (
        "gpu takes an hour at most; see wiki.site.org; allocation failure: Unspecified error"
    )
    limit = "QOSMaxSubmitJobPerUserLimit; Batch job submission failed: Job violates policy"
    assert "max_submit in the profile" in commands.with_remedy(limit)
    assert commands.with_remedy("Invalid account") == "Invalid account"


def test_hidden_partitions_are_partitions(slurm):
    """Jobs in them are jobs as well."""
    shown = "case \" $* \" in *' -a '*) {} ;; esac"
    # 1024 nodes are 1K of them, unless one asks.
    nodes = "case $* in *--noconvert*) nodes=1024 ;; *) nodes=1K ;; esac; "
    gpus = "gpu:2080ti:8(S:0,1),gpu:1g.10gb:7(S:0),mps:4,gpu:3"
    slurm(
        sinfo=nodes + shown.format(f'echo "secret|up|1:00:00|$nodes|64|{gpus}"'),
        squeue=shown.format(f"{ROW} 7 x '' PENDING None N/A"),
        scontrol="echo 'ClusterName = c'",
        srun="",
    )
    (partition,) = read_facts().partitions
    assert (partition.name, partition.nodes) == ("secret", 1024)
    assert partition.gpus == {"2080ti": 8, "1g.10gb": 7, "": 3}
    assert len(commands.queued(["x"])) == 1


def test_jobs_that_are_ending_are_waited_for(slurm, tmp_path):
    """Only then it is known whether their tasks are missing."""
    run = RunFolder(tmp_path / "run")
    files.write_json(run.info, {"id": "0123", "created": "2026-01-01T00:00:00+00:00"})
    files.write_atomic(run.recipe_file, dump_yaml(load_recipe("ar_tiny")))
    name = "preprocess.run.0123"
    ending = f"{ROW} 7_0 {name} 'shards 0 4' COMPLETING None N/A"
    slurm(squeue=after(3, "true", ending))
    queue = read_queue(run)
    assert queue.stage("preprocess").counts == {"COMPLETING": 1}
    assert submit._settled(queue, Console()).jobs == []
    assert len(calls(tmp_path, "squeue")) == 4


def test_a_slurm_that_answers_no_more_is_not_an_empty_queue(slurm, tmp_path):
    run = RunFolder(tmp_path / "run")
    files.write_json(run.info, {"id": "0123", "created": "2026-01-01T00:00:00+00:00"})
    files.write_atomic(run.recipe_file, dump_yaml(load_recipe("ar_tiny")))
    ending = f"{ROW} 7_0 preprocess.run.0123 'shards 0 4' COMPLETING None N/A"
    slurm(squeue=after(1, "exit 1", ending))
    with pytest.raises(RequestError, match="squeue failed"):
        submit._settled(read_queue(run), Console())


def test_one_module_runs_slurms_commands():
    """Others run the Python of jobs, look into images, and read what a job's shell would."""
    folder = Path(commands.__file__).parent
    using = [path.name for path in folder.glob("*.py") if "subprocess." in path.read_text()]
    assert sorted(using) == ["commands.py", "images.py", "secrets.py"]
    others = "".join((folder / name).read_text() for name in ("images.py", "secrets.py"))
    assert not re.search("(sbatch|squeue|scontrol|sinfo|scancel|sacct)", others)
