"""A stage that was added to the table, on a real Slurm."""

import pytest

from tests.new_stage import package_with_a_stage
from tests.slurm.login import Login


@pytest.mark.slow
def test_a_new_stage_is_an_array_of_its_own(lab, tmp_path, scenes):
    """With its time limit, its partition and what it waits for."""
    login = Login(lab, tmp_path)
    place = package_with_a_stage(tmp_path / "package", array=True)
    checked = login.command("cluster", "check", "mine", PYTHONPATH=place)
    assert "Slurm would take a job of stage count" in checked.out
    proposed = login.command("cluster", "init", "other", PYTHONPATH=place)
    assert 'count: "00:20:00"' in proposed.out
    refused = login.command(
        *("submit", "recipe=ar_tiny", "cluster=mine", f"data.input={scenes}", "--name", "long"),
        "cluster.time.count=9-00:00:00",
        PYTHONPATH=place,
    )
    assert (refused.code, "time.count=9-00:00:00 is above" in refused.err) == (2, True)
    # Two arrays share what a limit of jobs leaves: two of four shards a task.
    limit = ("data.videos_per_shard=2", "cluster.max_submit=5")
    request = (f"data.input={scenes}", "--stages", "download,preprocess,count", *limit)
    login.submit("counted", *request, "cluster.time.preprocess=00:30:00", PYTHONPATH=place)
    script = (login.run("counted") / "scripts" / "count_sbatch.sh").read_text()
    assert "#SBATCH --time=00:20:00" in script
    assert "#SBATCH --partition=cpu" in script
    assert "#SBATCH --array=0-1%2" in script

    def stage():
        outcome = login.command("status", "counted", PYTHONPATH=place).out
        return next(line.split() for line in outcome.splitlines() if line.startswith("  count"))

    login.until(lambda: stage()[1] in ("done", "failed"))
    assert stage() == ["count", "done", "4/4", "tasks", "4", "counted"], login.explain("counted")
    counts = [path.read_text() for path in (login.run("counted") / "counts").iterdir()]
    assert sum('"clips": 2' in text for text in counts) == 4
    logs = login.command("logs", "counted", "count.2", PYTHONPATH=place).out
    assert "2 clips" in logs
