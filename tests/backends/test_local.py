"""Runs on this machine: in places that get in the way, and cancelled at awkward moments."""

import shutil
import threading
import time

import pytest

import cosmos_hpc as ch
from cosmos_hpc.backends.local import LocalBackend
from tests.conftest import cosmos_hpc

#: Of a job of four tasks in whose shell somebody works.
ALLOCATION = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "work",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}


@pytest.mark.slow
def test_inside_an_allocation(old_run, tmp_path):
    """Stages see nothing of the job in whose shell they were submitted."""
    shutil.rmtree(old_run.path / "train")
    outcome = cosmos_hpc("retry", old_run.path, "train", cwd=tmp_path, env=ALLOCATION)
    assert outcome.code == 0, outcome.err
    assert "train       done, step 2/2" in outcome.err


@pytest.mark.slow
def test_what_follows_from_a_stage_that_is_done_anew_is_done_anew(old_run, tmp_path):
    """A shard without its marker is prepared again, and joined with the others again."""
    (old_run.path / "tokens" / "shards" / "00001" / "done.json").unlink()
    outcome = cosmos_hpc("retry", old_run.path, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "finalize    done, 6 clips of 6 videos" in outcome.err
    assert "run: done" in outcome.out


def test_a_cancel_while_the_run_is_prepared_is_heeded(scenes, tmp_path, monkeypatch):
    """Preparing takes a while with many videos; a later submit forgets the request to stop."""
    monkeypatch.chdir(tmp_path)
    prepare, said = LocalBackend.prepare, []

    def cancelled(self, *words):
        run = ch.Run("x")
        cancelling = threading.Thread(target=lambda: said.append(run.cancel()))
        cancelling.start()
        while not run.folder.stop_request.exists():
            assert cancelling.is_alive()
            time.sleep(0.01)
        return prepare(self, *words)

    request = {"overrides": {"data.input": scenes}, "name": "x"}
    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "prepare", cancelled)
        with pytest.raises(ch.WorkError, match="stopped on request"):
            ch.submit("ar_tiny", **request, stages=["download", "preprocess"])
    run = ch.Run("x")
    deadline = time.monotonic() + 60
    while not said:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert said == [1]
    assert not run.folder.tokens.path.exists()
    ch.submit("ar_tiny", **request, stages=["download"])
    assert not run.folder.stop_request.exists()
