"""A backend that is added takes a class and an entry in the table of kinds."""

import pytest

import cosmos_hpc as ch
from cosmos_hpc.backends.kinds import KINDS
from cosmos_hpc.utils import files
from tests.backends.toy import ToyBackend

STAGES = ("download", "preprocess", "finalize")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A profile of the new kind, in the working folder."""
    monkeypatch.setitem(KINDS, "toy", "tests.backends.toy:ToyBackend")
    monkeypatch.setattr(ToyBackend, "asked", [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "box.yaml").write_text("kind: toy\nmost_videos: 9\n")
    return "box"


def test_it_carries_out_a_run(toy, scenes):
    request = ("ar_tiny", toy, [f"data.input={scenes}", "data.videos_per_shard=4"])
    planned = ch.submit(*request, name="x", stages=STAGES, dry_run=True)
    assert planned.dry_run.count("run_task.py") == 4
    assert planned.status().state == "prepared"
    ToyBackend.asked.clear()
    run = ch.submit(*request, name="x", stages=STAGES)
    assert ToyBackend.asked == ["queue"]  # once a command
    state = run.status()
    assert [s.state for s in state.stages] == ["done", "done", "done", "waiting"]
    assert state.state == "partial"
    assert "8 clips of 8 videos" in state.render()
    assert set(run.logs()) == {"download", "preprocess.0", "preprocess.1", "finalize"}
    # What it says of its queue is what status says.
    (run.path / "tokens" / "done.json").unlink()
    (run.path / "waiting").touch()
    finalize = run.status().stages[2]
    assert (finalize.state, finalize.jobs) == ("queued", {"DREAMING": 1})
    assert run.cancel() == 1
    assert run.status().stages[2].state == "stopped"
    run.retry("finalize", 0)
    assert files.read_json(run.path / "tokens" / "done.json")["clips"] == 8


def test_its_profile_is_typed_and_its_refusals_come_first(toy, scenes, tmp_path):
    with pytest.raises(ch.RequestError, match="unknown setting 'most_vidoes'; did you mean most"):
        ch.plan("ar_tiny", toy, ["cluster.most_vidoes=3"])
    with pytest.raises(ch.RequestError, match="a toy does not train"):
        ch.submit("ar_tiny", toy, [f"data.input={scenes}"], name="x")
    assert not (tmp_path / "runs").exists()
    assert [finding.text for finding in ch.check_cluster(toy)] == ["up to 9 videos"]
    (tmp_path / "clusters" / "toys.yaml").write_text("kind: toys\n")
    with pytest.raises(ch.RequestError, match="kind='toys': there are local, docker, slurm, toy"):
        ch.plan("ar_tiny", "toys")
