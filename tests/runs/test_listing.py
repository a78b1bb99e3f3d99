"""The runs of a folder: what is listed, compared, and said by ``status`` in numbers."""

import json
import os
import pydoc
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import cosmos_hpc as ch
from cosmos_hpc.backends.kinds import open_backend, queues_of, read_cluster
from cosmos_hpc.utils import files
from tests.conftest import cosmos_hpc
from tests.runs.written import checkpoint, worked_on, write_run


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_says_of_each_run_how_far_it_is(home):
    write_run(home / "runs/done", "generate.tasks=0", steps=4, saved=[2, 4], done=True)
    write_run(home / "runs/fresh")
    stopped = write_run(home / "runs/working", "train.max_steps=9", steps=3, saved=[2])
    write_run(home / "runs/broken").recipe_file.write_text("name: [")
    (home / "runs/no-run").mkdir()
    (home / "outside").write_bytes(b"x" * 3_000_000)
    (stopped.path / "link").symlink_to(home / "outside")
    with worked_on(stopped):
        shown = cosmos_hpc("runs", "--json", cwd=home)
        text = cosmos_hpc("runs", cwd=home).out
    rows = {row["name"]: row for row in json.loads(shown.out)}
    assert list(rows) == ["broken", "done", "fresh", "working"]
    assert [rows[name]["step"] for name in ("done", "fresh", "working")] == [4, None, 3]
    assert rows["working"]["state"] == "running"
    assert rows["working"]["loss"] == pytest.approx(4.7)
    assert rows["working"]["validation_loss"] == 4.5
    assert rows["working"]["checkpoint"] == str(checkpoint(stopped, 2))
    assert 100_000 < rows["working"]["bytes"] < 1_000_000
    written = stopped.train.metrics.stat().st_mtime
    assert rows["working"]["last_progress"] >= written
    assert rows["fresh"]["last_progress"] is None
    assert rows["broken"]["state"] == "damaged"
    assert "is not valid YAML" in rows["broken"]["problem"]
    line = next(line for line in text.splitlines() if line.split()[0] == "working")
    assert line.split()[1:5] == ["running", "train", "3", "4.7000"]
    assert "4 runs, " in text


def test_places_of_runs(home):
    assert "no runs in" in cosmos_hpc("runs", cwd=home).out
    assert "there is no folder" in cosmos_hpc("runs", "elsewhere", cwd=home).err
    write_run(home / "far/one")
    files.write_atomic(home / "clusters/mine.yaml", f"kind: local\nruns: {home}/far\n")
    for place in ("far", "cluster=mine"):
        assert "one" in cosmos_hpc("runs", place, cwd=home).out
    assert [run.path for run in ch.runs(cluster="mine")] == [home / "far/one"]
    with pytest.raises(ch.RequestError, match="unknown cluster 'mien'; did you mean mine"):
        ch.runs(cluster="mien")


def test_a_file_in_place_of_the_folder_of_runs(home, scenes):
    taken = home / "taken"
    taken.write_text("no folder")
    files.write_atomic(home / "clusters/mine.yaml", f"kind: local\nruns: {taken}\n")
    request = ["submit", "recipe=ar_tiny", f"data.input={scenes}"]
    for words, says in (
        (["runs", "taken"], "give the folder that holds runs"),
        (["runs", "taken/below"], "give the folder that holds runs"),
        (["runs", "prune", "cluster=mine"], "the one that a profile names as runs"),
        ([*request, "cluster=mine"], "choose another place with cluster.runs=DIR"),
        ([*request, "cluster.runs=.", "--name", "taken"], "or another --name"),
    ):
        shown = cosmos_hpc(*words, cwd=home)
        assert shown.code == 2
        assert f"{taken} is a file; " in shown.err and says in shown.err
    checked = cosmos_hpc("cluster", "check", "mine", cwd=home)
    assert f"runs={taken}: {taken} is a file, not a folder" in checked.out


#: As Slurm answers: of the names that it is asked for.
SQUEUE = """#!/bin/sh
echo "$0 $*" >> "$CALLS"
case "$*" in
*train.b.id-b*) printf '7\\037train.b.id-b\\037\\037RUNNING\\037None\\037N/A\\n' ;;
esac
"""
SCONTROL = """#!/bin/sh
echo "$0 $*" >> "$CALLS"
echo "ClusterName             = alpha"
"""


def test_slurm_is_asked_once_for_all_runs_of_a_cluster(home, monkeypatch):
    profile = (
        "kind: slurm\nname: hpc\nruns: runs\nparallel: 4\ngpu_partition: gpu\ncpu_partition: cpu\n"
    )
    runs = [write_run(home / "runs" / n, steps=2, cluster=profile) for n in "abc"]
    files.write_jsonl(runs[2].jobs, [{"stage": "train", "job": "5", "cluster": "beta"}])
    for name, text in (("squeue", SQUEUE), ("scontrol", SCONTROL)):
        files.write_atomic(home / "bin" / name, text)
        (home / "bin" / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("CALLS", str(home / "calls"))
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")
    queues = queues_of(run.folder for run in ch.runs())
    calls = (home / "calls").read_text().splitlines()
    assert sorted(Path(call.split()[0]).name for call in calls) == ["scontrol", "squeue"]
    a, b, c = (queues[run.path] for run in runs)
    assert (a.stages, a.problem) == ({}, "")
    assert b.stages["train"].counts == {"RUNNING": 1}
    assert "was submitted to cluster beta" in c.problem
    for run in runs:  # as when it is asked for alone
        alone = open_backend(read_cluster(run.cluster_file)).queue(run)
        assert (alone.stages, alone.problem) == (queues[run.path].stages, queues[run.path].problem)
    monkeypatch.setenv("PATH", "/nowhere")
    unknown = queues_of(runs).values()
    assert all("squeue is not on the PATH" in queue.problem for queue in unknown)


def test_status_in_numbers(home):
    run = write_run(home / "runs/mine", steps=3, saved=[1, 3])
    state = ch.Run("mine").status()
    assert (state.step, state.validation_loss) == (3, 4.5)
    assert state.loss == pytest.approx(4.7)
    assert state.checkpoint == str(ch.Run("mine").checkpoint) == str(checkpoint(run, 3))
    shown = json.loads(cosmos_hpc("status", "mine", "--json", cwd=home).out)
    assert (shown["step"], shown["checkpoint"]) == (3, str(checkpoint(run, 3)))
    # However long ago the last validation was.
    rows = [{"step": n, "loss": 1.0, "seconds": 1.0, "time": 1.7e9} for n in range(4, 2000)]
    files.write_jsonl(run.train.metrics, [*files.read_jsonl(run.train.metrics), *rows])
    assert ch.Run("mine").status().validation_loss == 4.5
    write_run(home / "runs/longer", "train.max_steps=2", steps=3, saved=[3], done=True)
    assert "step 3 (asked for: 2), loss 4.700" in ch.Run("longer").status().render()
    write_run(home / "runs/fresh")
    state = ch.Run("fresh").status()
    assert (state.step, state.loss, state.checkpoint) == (None, None, None)
    assert ch.Run("fresh").checkpoint is None


def test_runs_are_compared(home):
    write_run(home / "runs/a", "train.learning_rate=1e-4", "train.validate_first=false", steps=2)
    scored = write_run(home / "runs/b", "train.learning_rate=2e-4", steps=2)
    scores = {"trained": {"psnr": 21.5, "ssim": 0.75}}
    heard = {"trained": {"loss": 3.25, "top1": 0.5}}
    files.write_json(scored.evaluation.metrics, {"generated": scores, "teacher_forced": heard})
    table = ch.compare(["a", ch.Run("b")])
    assert table.scores[1]["psnr"] == 21.5
    assert table.scores[0]["psnr"] is None
    assert table.settings == {
        "train.learning_rate": [1e-4, 2e-4],
        "train.validate_first": [False, True],
    }
    # As they are written in a request.
    assert table.render_settings().splitlines()[-1].split()[1:] == ["false", "true"]
    lines = str(table).splitlines()
    assert lines[0].split()[-2:] == ["(dB)", "SSIM"]
    assert lines[1].split() == ["a", "2", "4.8000", "4.5000", "-", "-", "-", "-"]
    assert lines[2].split()[-4:] == ["3.2500", "0.5000", "21.50", "0.7500"]
    page = table._repr_html_()
    assert "<th" in page and "21.50" in page and "train.learning_rate" in page
    with pytest.raises(ch.RequestError, match="compare needs runs"):
        ch.compare([])


def test_what_there_is_can_be_seen(tmp_path):
    """Before anything of it was imported, and the doors stay what they are afterwards."""
    code = """
import sys
import cosmos_hpc as ch
assert [name for name in dir(ch) if not name.startswith("_")] == ch.__all__, dir(ch)
assert "cosmos_hpc.api" not in sys.modules
for _ in range(2):
    assert ch.runs(".") == []
    from cosmos_hpc import runs
    assert runs is ch.runs
    import cosmos_hpc.runs.folder
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    page = pydoc.plain(pydoc.render_doc(ch))
    for name in ch.__all__:
        assert f"``{name}``" in page.partition("PACKAGE CONTENTS")[0]
    assert "submit(recipe: " in page


def test_overrides_are_a_list_or_a_dict(home):
    wanted = ["train.max_steps=7", "train.learning_rate=2e-5", "data.input=007"]
    nested = {"train": {"max_steps": 7, "learning_rate": 2e-5}, "data.input": Path("007")}
    found = [ch.recipe("ar_tiny", overrides) for overrides in (wanted, nested)]
    assert found[0] == found[1]
    assert found[0].data.input == "007"
    compression = {
        "data.compression": [8, 16, 16],
        "data.input": None,
        "train.validate_first": True,
    }
    assert ch.recipe("ar5b_v2w", compression).data.input is None
    message = "overrides is a list of key=value or a dict, not one text"
    for door in (ch.plan, ch.recipe, ch.submit, ch.generate, ch.check_cluster):
        with pytest.raises(ch.RequestError, match=message):
            door("ar_tiny", overrides="train.max_steps=7")
    with pytest.raises(ch.RequestError, match="and holds 7"):
        ch.recipe("ar_tiny", [7])
    write_run(home / "runs/mine", steps=2, saved=[2])
    for words in (["input=gone.png"], [["input=gone.png"]], [{"input": "gone.png"}]):
        with pytest.raises(ch.RequestError, match=r"input=gone\.png does not exist"):
            ch.Run("mine").generate(*words)


def test_words_of_cluster_have_their_own_help(tmp_path):
    shown = cosmos_hpc("cluster", "init", "--help", cwd=tmp_path).out
    assert "write a profile of the Slurm cluster" in shown
    assert "key=value" not in shown
    assert "key=value" in cosmos_hpc("cluster", "check", "--help", cwd=tmp_path).out
    assert cosmos_hpc("cluster", "check", cwd=tmp_path).code == 2
    assert cosmos_hpc("cluster", "check", "local", "parallel=1", cwd=tmp_path).code == 0
