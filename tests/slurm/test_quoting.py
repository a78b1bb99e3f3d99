"""Values with everything that shells and Slurm interpret, through Slurm itself."""

from cosmos_hpc.backends.slurm.jobs import jobs_of
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.backends.slurm.script import render
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import STAGES, RunStage
from cosmos_hpc.utils.settings import validate
from tests.backends.slurm.test_jobs import PROFILE
from tests.backends.slurm.test_script import NASTY, values
from tests.slurm.login import Login


def directives(text):
    """The script, held in the queue."""
    return text.replace("#SBATCH --open-mode", "#SBATCH --hold\n#SBATCH --open-mode", 1)


def test_sbatch_reads_the_directives_as_they_were_meant(lab, tmp_path):
    """A further flag and the run folder, as Slurm shows them of the queued job."""
    kept = 0
    for number, value in enumerate([*NASTY, *(v for seed in range(3) for v in values(seed, 10))]):
        flag = f"--comment=x{value}"
        try:
            settings = {**PROFILE, "parallel": 1, "sbatch": [flag]}
            cluster = validate(SlurmCluster, settings, "x")
        except RequestError as e:
            assert "not a long flag" in str(e)
            continue
        (job,) = jobs_of(RunStage(STAGES["download"]), [0], cluster)
        script = tmp_path / f"{number}.sh"
        script.write_text(directives(render(job, RunFolder(tmp_path), cluster, "id", tmp_path)))
        job_id = lab.run("sbatch", "--parsable", str(script)).strip()
        try:
            shown = lab.run("squeue", "-h", f"--jobs={job_id}", "-o", "%k")
            assert shown == f"x{value}\n", value
        finally:
            lab.run("scancel", job_id)
        kept += 1
    assert kept > 30


def test_a_run_in_a_folder_of_any_name(lab, tmp_path, scenes):
    """The whole way, with the videos in such a folder as well."""
    name = 'it\'s a "run" of $(touch pwned) `touch pwned`, é日; #1 & [x] -- {y}'
    login = Login(lab, tmp_path / f"-home {name}")
    videos = login.home / f"videos {name}"
    videos.mkdir()
    for path in list(scenes.iterdir())[:2]:
        (videos / path.name).write_bytes(path.read_bytes())
    words = ("--stages", "download,preprocess", "data.videos_per_shard=1")
    login.submit("run", f"data.input={videos}", *words)
    login.wait("run", "preprocess", "done", "failed")
    assert login.stage("run", "preprocess")["state"] == "done", login.explain("run")
    logs = login.command("logs", "run", "preprocess.1").out
    assert "shard 1 is complete: 1 clip," in logs
    assert not list(tmp_path.rglob("pwned"))
    assert login.command("logs", "run", "download").code == 0


def test_folders_that_slurm_cannot_name_are_refused(lab, tmp_path, scenes):
    login = Login(lab, tmp_path)
    for value in ("50%", "back\\slash", "new\nline", "tab\t"):
        outcome = login.command(
            *("submit", "recipe=ar_tiny", "cluster=mine", f"data.input={scenes}"),
            *("--name", "x", f"cluster.runs={tmp_path}/{value}"),
        )
        assert outcome.code == 2
        assert "Slurm's scripts cannot name; choose another path" in outcome.err
        assert outcome.err.count("\n") == 1
