"""A run whose jobs an older version submitted, followed, cancelled and continued by today's."""

import pytest

from cosmos_hpc.runs.folder import RunFolder
from tests.slurm.login import Login


@pytest.mark.slow
def test_jobs_of_an_older_version(lab, tmp_path, old_run):
    login = Login(lab, tmp_path / "login")
    request = (
        *("submit", f"recipe={old_run.recipe}", "cluster=mine", f"data.input={old_run.videos}"),
        *(f"train.init_from={old_run.weights}", "train.gpus=1", "cluster.parallel=4"),
        *("--name", "old"),
    )
    # Nothing begins: what the old version has queued is seen, and taken out of the queue.
    submitted = login.command(*request, "cluster.sbatch=['--hold']", PYTHONPATH=str(old_run.code))
    assert submitted.code == 0, submitted.err
    state = login.status("old")
    assert [stage["state"] for stage in state["stages"]] == ["queued"] * 4, login.explain("old")
    assert state["stages"][1]["jobs"] == {"PENDING": 4}
    cancelled = login.command("cancel", "old")
    assert (cancelled.code, login.queued("old")) == (0, []), cancelled.err
    # The old version's jobs do their work while today's looks at them.
    again = login.command(*request, "--stages", "download,preprocess", PYTHONPATH=str(old_run.code))
    assert again.code == 0, again.err
    assert login.command("status", "old", "--watch").code == 0
    assert "4/4 tasks  6/6 videos" in login.command("status", "old").out, login.explain("old")
    assert "shard 1 is whole" in login.command("logs", "old", "preprocess.1").out
    run = RunFolder(login.run("old"))
    code = run.code()
    assert code == run.path / "code" / old_run.code.name
    # And today's resumes; that it trains on this, tests/runs/test_old_runs.py shows.
    retried = login.command("retry", "old", "finalize.0")
    assert retried.code == 0, retried.err
    assert login.wait("old", "finalize", "done", "failed")["state"] == "done", login.explain("old")
    assert run.code() != code
    ids = (old_run.path / "tokens" / "tokens.bin").read_bytes()
    assert (run.tokens.path / "tokens.bin").read_bytes() == ids
