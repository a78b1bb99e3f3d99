"""Scripts of jobs as real bash and shellcheck read them."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_hpc.backends.slurm.jobs import jobs_of, read_array_comment
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.backends.slurm.script import check_path, render
from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import STAGES, RunStage
from cosmos_hpc.utils.settings import validate
from tests.backends.slurm.test_jobs import PROFILE
from tests.conftest import REPOSITORY, SHELLCHECK, executables

#: What shells and Slurm give a meaning to.
NASTY = [" ", "'", '"', "$(touch pwned)", "`touch pwned`", "$HOME", "\n", ",", ";", "&", "|", ">"]
NASTY += [
    "é",
    "日",
    "-",
    "--",
    "#",
    "!",
    "*",
    "?",
    "[a]",
    "{b}",
    "~",
    "=",
    ":",
    "a",
    "\\",
    "%",
    "%j",
    "\t",
    "(",
    ")",
]
TRAIN = RunStage(STAGES["train"], ranks=4)


def scripts(cluster_settings, run="/shared/runs/x", stages=None):
    settings = {**PROFILE, "parallel": 4, **cluster_settings}
    cluster = validate(SlurmCluster, settings, "x")
    for stage in stages or [
        RunStage(STAGES["download"]),
        RunStage(STAGES["preprocess"], tasks=5),
        TRAIN,
    ]:
        for job in jobs_of(stage, range(stage.tasks), cluster):
            yield job, render(job, RunFolder(run), cluster, "id", Path("/code"), ["/data"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gpus_per_node": 2, "nodes": 2, "cpus_per_gpu": 8, "account": "a", "qos": "q"},
        {"container": "/images/x.sqsh", "mounts": ["/scratch:/scratch"]},
        {"container": "/images/x.sif", "container_runtime": "apptainer"},
        {"setup": ["module load cuda"], "sbatch": ["--mem=0"], "max_array_size": 2},
    ],
)
def test_shellcheck_has_nothing_to_say(settings):
    for _, text in scripts(settings):
        done = subprocess.run(
            [SHELLCHECK, "-"], input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def rendered(*recipes):
    """Scripts by path, as ``sbatch/render.py`` writes them; of its examples where none is named."""
    folder = REPOSITORY / "sbatch"
    command = "import sys, json; sys.path.insert(0, sys.argv[1]); import render; "
    command += "found = render.scripts(*map(str.split, sys.argv[2:])); "
    command += "print(json.dumps({str(path): text for path, text in found}))"
    done = subprocess.run(
        [sys.executable, "-c", command, str(folder), *recipes],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_rendered_examples_are_true():
    """Render them again with ``python sbatch/render.py``."""
    folder = REPOSITORY / "sbatch"
    there = {str(p.relative_to(folder)): p.read_text() for p in folder.glob("*/*_sbatch.sh")}
    scripts = rendered()
    assert scripts.keys() == there.keys()
    for name, text in scripts.items():
        assert there[name] == text, name


def test_scripts_of_all_recipes_can_be_rendered(tmp_path):
    """Four stages each; of the small models, as many jobs as 4000 shards need."""
    scripts = rendered(" ".join(recipe_names()))
    stages = {name: set(STAGES) for name in recipe_names()}
    for path, text in scripts.items():
        recipe, _, script = path.partition("/")
        stages[recipe].discard(re.split("[-_]", script)[0])
        (tmp_path / path.replace("/", "-")).write_text(text)
    assert not any(stages.values())
    done = subprocess.run(
        [SHELLCHECK, *sorted(map(str, tmp_path.iterdir()))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def recorder(tmp_path):
    """An srun that records its words, and a Slurm that has nothing to say."""
    srun = 'printf "%s\\0" "$@" >"$RECORD"\n: >"$COSMOS_HPC_STOP.done"'
    return executables(tmp_path / "bin", srun=srun, scontrol="", squeue="")


def values(seed, count=12):
    chance = random.Random(seed)
    for _ in range(count):
        yield "".join(chance.choices(NASTY, k=chance.randrange(1, 9)))


@pytest.mark.parametrize("seed", range(6))
def test_bash_gets_every_value_back_or_it_is_refused(recorder, tmp_path, seed):
    """Run folders, images, mounts and Pythons with all that a shell would like to interpret."""
    kept = refused = 0
    for number, value in enumerate(values(seed)):
        run = tmp_path / f"{number}{value}"
        image, python = f"/images/{value}.sqsh", f"/opt/{value}/python"
        try:
            check_path(run)
            settings = {"container": image, "python": python}
            ((_, text),) = scripts(settings, run, [RunStage(STAGES["download"])])
        except RequestError as e:
            assert any(word in str(e) for word in ("choose another path", "cannot mount", "line"))
            refused += 1
            # Without a container there is less that cannot be said.
            try:
                check_path(run)
                ((_, text),) = scripts({"python": python}, run, [RunStage(STAGES["download"])])
            except RequestError:
                continue
        kept += 1
        for folder in ("stages/attempts", "stages/errors", "stages/stops"):
            (run / folder).mkdir(parents=True, exist_ok=True)
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        environment = {"PATH": f"{recorder}:{os.environ['PATH']}", "RECORD": str(record)}
        done = subprocess.run(
            ["bash"],
            input=text.encode(),
            env={**environment, "SLURM_JOB_ID": "1"},
            cwd=tmp_path,
            capture_output=True,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        words = record.read_bytes().decode().split("\0")[:-1]
        assert words[-4:] == [python, "/code/run_task.py", f"{run}/stages/download.json", "0"]
        if "--container-image" in text:
            assert f"--container-image={image}" in words
        assert (run / "stages" / "attempts" / "download.0").read_text().count("\n") == 2
    assert kept and refused
    assert not list(tmp_path.rglob("pwned"))


def test_names_of_runs_that_are_no_plain_names_are_refused(tmp_path):
    from tests.conftest import cosmos_hpc

    for value in ("$(id)", "a b", "-x", "a,b", "é", "a\nb", "a/../b", "`id`", ""):
        outcome = cosmos_hpc(
            "submit", "recipe=ar_tiny", "data.input=.", f"--name={value}", cwd=tmp_path
        )
        if value:
            assert outcome.code == 2
            assert "run name" in outcome.err
        assert outcome.err.count("\n") == 1


def test_torchrun_gives_its_ranks_as_much_time_as_the_job_has():
    texts = {job.stage.name: text for job, text in scripts({"grace_seconds": 77})}
    assert "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=77\n" in texts["train"]
    assert "TORCH_ELASTIC" not in texts["preprocess"]


def test_shards_that_failed_are_not_tried_again_in_the_same_job(tmp_path):
    """An array task of three shards: the first failed before the job queued itself again."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(
        '#!/bin/bash\necho "${@: -1}" >>"$RECORD"\n: >"$COSMOS_HPC_STOP.done"\n'
    )
    (folder / "srun").chmod(0o755)
    run = RunFolder(tmp_path / "run")
    stage = RunStage(STAGES["preprocess"], tasks=3)
    ((_, text),) = scripts({"max_submit": 4}, run.path, [stage])
    attempts = run.attempts("preprocess", 0)
    for path in (attempts, run.task_stop("preprocess", 0), run.error("preprocess", 0)):
        path.parent.mkdir(parents=True, exist_ok=True)
    attempts.write_text('{"job": "7_0", "end": 1, "why": "failed"}\n')
    variables = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": "1"}
    done = subprocess.run(
        ["bash"],
        input=text,
        env={
            **os.environ,
            **variables,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "RECORD": str(tmp_path / "record"),
        },
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert "shard 0 has failed in this job before" in done.stdout
    assert (tmp_path / "record").read_text().split() == ["1", "2"]


def test_a_comment_of_the_profile_does_not_hide_which_shards_an_array_has():
    settings = {"sbatch": ["--comment=metrics on"], "max_array_size": 2}
    texts = [text for job, text in scripts(settings) if job.array]
    lines = [line for text in texts for line in text.splitlines() if "--comment" in line]
    last = [[line for line in text.splitlines() if "--comment" in line][-1] for text in texts]
    assert len(last) == 3
    assert len(lines) == 6  # the profile's own before it
    read = [read_array_comment(line.partition("=")[2].strip('"')) for line in last]
    assert read == [(0, 5), (2, 5), (4, 5)]
    assert all('="metrics on shards' in line for line in last)


@pytest.mark.parametrize(
    ("squeue", "requeued", "why", "reason"),
    [
        ("echo RUNNING", True, "killed", None),
        ("echo PENDING", False, "killed", None),
        ("echo CANCELLED", False, "cancelled", None),
        ("exit 1", False, "killed", "Slurm did not say whether it is to be queued again"),
    ],
)
def test_a_killed_worker_is_queued_again_only_where_slurm_says_nothing_else(
    tmp_path, squeue, requeued, why, reason
):
    run = tmp_path / "run"
    ((_, text),) = scripts({}, run, [RunStage(STAGES["download"])])
    for folder in ("stages/attempts", "stages/errors", "stages/stops"):
        (run / folder).mkdir(parents=True)
    record = tmp_path / "record"
    scontrol = f'echo "$@" >>{record}'
    folder = executables(
        tmp_path / "bin", srun="kill -9 $$", squeue=squeue, scontrol=scontrol, sleep=""
    )
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=text.encode(), env=environment, capture_output=True)
    assert done.returncode == (1 if reason else 75)
    assert (record.read_text() if record.exists() else "") == "requeue 7\n" * requeued
    last = (run / "stages/attempts/download.0").read_text().splitlines()[-1]
    assert json.loads(last)["why"] == why
    left = run / "stages/errors/download.0.txt"
    assert (reason in left.read_text()) if reason else not left.exists()
