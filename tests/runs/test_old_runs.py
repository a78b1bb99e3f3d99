"""Runs and checkpoints that were made before the modules of the package moved."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from tests.conftest import cosmos_hpc


def test_status_and_logs_say_what_they_said(old_run, tmp_path):
    arguments = ("status", old_run.path)
    before = subprocess.run(
        [sys.executable, "-m", "cosmos_hpc", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(old_run.code)},
        capture_output=True,
        text=True,
    )
    assert before.returncode == 0, before.stderr
    assert "train       done     step 2/2" in before.stdout
    assert cosmos_hpc(*arguments, cwd=tmp_path).out == before.stdout
    logs = cosmos_hpc("logs", old_run.path, cwd=tmp_path).out
    assert "trained 2 steps" in logs
    for name in ("preprocess.0", "preprocess.1", "finalize", "train"):
        assert f"==> {name}  {old_run.path}" in logs


def test_a_look_at_a_run_brings_in_what_it_needs(old_run, tmp_path):
    """Neither the Hub, nor plans, nor the scripts of another kind of cluster."""
    code = (
        "import sys; from cosmos_hpc.cli import main; assert main(['status', sys.argv[1]]) == 0; "
        "print(*(name for name in sys.modules if name.startswith('cosmos_hpc.')), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(old_run.path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = done.stderr.split()
    assert "cosmos_hpc.runs.status" in imported
    useless = ("hub", "planning", "worker", "nemo_run", "backends.slurm", "backends.launch")
    for name in useless:
        assert not any(f"{module}.".startswith(f"cosmos_hpc.{name}.") for module in imported), name


@pytest.mark.slow
def test_a_missing_shard_is_prepared_again_and_the_training_continued(old_run, tmp_path):
    """By the code of today, from shards, tokens and a checkpoint of the code of then."""
    run = RunFolder(old_run.path)
    ids = (run.tokens.path / "tokens.bin").read_bytes()
    losses = [row["loss"] for row in files.read_jsonl(run.train.metrics) if "loss" in row]
    shutil.rmtree(run.tokens.shard(1))
    state = json.loads(cosmos_hpc("status", run.path, "--json", cwd=tmp_path).out)
    assert [stage["state"] for stage in state["stages"]] == ["done", "stopped", "waiting", "done"]
    retried = cosmos_hpc("retry", run.path, "preprocess.1", cwd=tmp_path)
    assert retried.code == 0, retried.err
    words = ("submit", f"recipe={old_run.recipe}", f"data.input={old_run.videos}")
    words += (f"train.init_from={old_run.weights}", f"cluster.runs={run.path.parent}")
    continued = cosmos_hpc(
        *words, "train.max_steps=4", "generate.tasks=0", "--name", run.name, cwd=tmp_path
    )
    assert continued.code == 0, continued.err
    assert "continuing run" in continued.err
    assert (run.tokens.path / "tokens.bin").read_bytes() == ids
    rows = [row for row in files.read_jsonl(run.train.metrics) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows[:2]] == losses
    logs = [row["log"] for row in files.read_jsonl(run.log_index) if row["stage"] == "train"]
    log = (run.path / logs[-1]).read_text(errors="replace")
    assert "training from step 2 to step 4" in log
    # What runs is a snapshot of today's code beside the old one.
    assert len(list((run.path / "code").iterdir())) == 2


@pytest.mark.slow
def test_its_checkpoints_load(old_run):
    """NeMo imports the classes by the names that they had."""
    from nemo.lightning.io import load_context

    from cosmos_hpc.models.checkpoints.reader import open_weights
    from cosmos_hpc.worker.training.nemo import CosmosModel

    trained = next((old_run.path / "train" / "checkpoints").glob("*-last"))
    for folder in (old_run.checkpoint, trained):
        assert "cosmos_hpc.worker.nemo" in (folder / "context" / "io.json").read_text()
        model = load_context(folder / "context", subpath="model")
        assert type(model) is CosmosModel
        assert model.config.latent_shape == (2, 2, 2)
        open_weights(folder).expect(model.config.model())
