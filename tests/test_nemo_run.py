"""NeMo-Run's experiments with the stages of a run, on this machine and in containers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cosmos_hpc
from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from tests.backends.test_docker import box, engine  # noqa: F401
from tests.conftest import CANARIES, SMALL_CLIPS
from tests.conftest import cosmos_hpc as command
from tests.nemo_run import (
    CLOSED_HOME,
    EXPERIMENT,
    assert_no_secrets,
    documented,
    run_program,
)


@pytest.fixture
def cosmos(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with NeMo-Run's folder elsewhere than at home."""
    # Read once, when NeMo-Run is imported.
    if "nemo_run" not in sys.modules:
        monkeypatch.setenv("NEMORUN_HOME", str(tmp_path_factory.mktemp("nemo_run")))
    from cosmos_hpc import nemo_run

    return nemo_run


@pytest.fixture
def prepared(tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Prepares a run on a cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")

    def prepare(cluster: str, *overrides: str) -> cosmos_hpc.Run:
        settings = [f"data.input={scenes}", *overrides]
        return cosmos_hpc.submit("ar_tiny", cluster, settings, name="x", dry_run=True)

    yield prepare


SLURM = """\
kind: slurm
account: lab
qos: normal
gpu_partition: gpu
cpu_partition: cpu
gpus_per_node: 2
cpus_per_gpu: 4
gres: gpu:h100
nodes: 2
parallel: 3
setup: [module load cuda]
sbatch: [--exclusive, --mem=0]
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local", "box"])
def test_the_documented_example(
    place: str, tmp_path: Path, scenes: Path, request: pytest.FixtureRequest
) -> None:
    """As it stands in the docs, without a home, with secrets around."""
    cluster = place if place == "local" else request.getfixturevalue("box")[1]
    program = documented("# python experiment.py")
    said = run_program(program, cluster, scenes, cwd=tmp_path, env=CANARIES)
    run = RunFolder(tmp_path / "runs" / "mine")
    assert (run.tokens.path / "number-of-clips").read_text().strip() == "8", said
    assert_no_secrets(tmp_path, said)


@pytest.mark.slow
def test_an_experiment_goes_on_and_trains_on_two_ranks(tmp_path: Path, scenes: Path) -> None:
    """After a task that failed, and a request to stop."""
    home = tmp_path / "it's my $HOME"
    home.mkdir()
    shutil.copytree(scenes, home / "videos")
    words = ["recipe=ar_tiny", "data.input=videos", "train.max_steps=3", "train.gpus=2"]
    words += ["train.micro_batch_size=4", "data.videos_per_shard=3", "cluster.parallel=2"]
    words += SMALL_CLIPS
    done = command("submit", *words, "--name", "x", "--dry-run", cwd=home)
    assert done.code == 0, done.err
    run = RunFolder(home / "runs" / "x")
    kept = run.data.videos.read_bytes()
    run.data.videos.write_bytes(kept[:-1])
    said = run_program(EXPERIMENT, "x", "download,preprocess", cwd=home, env=CANARIES)
    state = json.loads(command("status", "x", "--json", cwd=home).out)
    assert "2" in state["stages"][1]["errors"], said
    run.data.videos.write_bytes(kept)
    run.stop_request.touch()
    env = {**CANARIES, "WANDB_MODE": "offline"}
    said = run_program(EXPERIMENT, "x", "download,preprocess,finalize,train", cwd=home, env=env)
    state = json.loads(command("status", "x", "--json", cwd=home).out)
    assert [stage["state"] for stage in state["stages"][:4]] == ["done"] * 4, said
    assert not state["stages"][1].get("errors")
    # What was done was not added again.
    assert "Task 0: preprocess-2" in said
    (log,) = (home / "home").rglob("train/**/combined.log")
    assert "Starting with 2 processes" in log.read_text()
    assert_no_secrets(home / "home", said)


def test_tasks_come_after_those_that_they_need(cosmos: ModuleType, prepared: Any) -> None:
    run = prepared("local", "data.videos_per_shard=2", "cluster.parallel=3", "cluster.gpus=3")
    made = cosmos.experiment(run)
    after = {job.id: job.dependencies for job in made.jobs}
    assert after == {
        "download": [],
        "preprocess-0": ["download"],
        "preprocess-1": ["download"],
        "preprocess-2": ["download"],
        "preprocess-3": ["preprocess-0"],
        "finalize": [f"preprocess-{number}" for number in range(4)],
        "train": ["finalize"],
        "generate-0": ["train"],
        "evaluate": ["generate-0"],
        "report": ["evaluate"],
    }
    gpus = {job.id: job.executor.env_vars["CUDA_VISIBLE_DEVICES"] for job in made.jobs}
    assert gpus["preprocess-0"] == gpus["preprocess-3"] == gpus["train"] == "GPU-a"
    assert (gpus["preprocess-1"], gpus["preprocess-2"], gpus["finalize"]) == ("GPU-b", "GPU-c", "")
    # What is done is not waited for, nor what was not asked for.
    files.write_json(run.folder.tokenizer / "done.json", {})
    made = cosmos.experiment(run.path, ["download", "preprocess", "train"], log_level="ERROR")
    after = {job.id: job.dependencies for job in made.jobs}
    assert after["preprocess-0"] == []
    assert after["train"] == [f"preprocess-{number}" for number in range(4)]


def test_a_complete_executor_for_slurm(
    cosmos: ModuleType, prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "box.yaml").write_text(SLURM)
    # There need be no Slurm here for a cluster without pyxis.
    monkeypatch.setenv("HF_TOKEN", CANARIES["HF_TOKEN"])
    made = cosmos.executor("box.yaml", "train")
    assert (made.account, made.qos, made.partition) == ("lab", "normal", "gpu")
    assert (made.nodes, made.ntasks_per_node, made.gres) == (2, 1, "gpu:h100:2")
    assert (made.cpus_per_task, made.time, made.signal) == (8, "04:00:00", "B:USR1@300")
    assert made.retries == 20
    assert "module load cuda" in made.setup_lines
    assert made.additional_parameters["mem"] == "0"
    assert made.additional_parameters["exclusive"] is True
    assert "HF_TOKEN" in made.additional_parameters["export"]
    assert made.env_vars == {}
    assert CANARIES["HF_TOKEN"] not in repr(made)
    made = cosmos.executor(load_cluster("box.yaml"), "finalize")
    assert (made.partition, made.gres, made.nodes) == ("cpu", None, 1)
    # With a run, as many nodes and GPUs as it has ranks.
    run = prepared("box.yaml", "train.gpus=1")
    assert cosmos.executor("box.yaml", "train", run).gres == "gpu:h100:1"
    assert cosmos.executor("box.yaml", "preprocess", run, 0).gres == "gpu:h100:1"


def test_apptainer_is_called_by_the_task(
    cosmos: ModuleType, prepared: Any, tmp_path: Path, scenes: Path
) -> None:
    image = tmp_path / "image.sif"
    image.touch()
    container = f"container: {image}\ncontainer_runtime: apptainer\n"
    (tmp_path / "box.yaml").write_text(SLURM + container)
    run = prepared("box.yaml")
    made = cosmos.task(run, "preprocess", 1)
    line = " ".join([made.entrypoint, made.path, *made.args])
    assert line.startswith("apptainer exec --nv --no-home ")
    assert f"--bind {scenes}:{scenes}" in line and f"{image} env COSMOS_HPC_STOP=" in line
    made = cosmos.executor("box.yaml", "preprocess", run, 1)
    assert made.container_image is None
    assert 'export APPTAINERENV_HF_TOKEN="$HF_TOKEN"' in made.setup_lines


def test_wrong_requests_are_refused_in_a_sentence(
    cosmos: ModuleType, prepared: Any, tmp_path: Path
) -> None:
    run = prepared("local")
    for call, reason in (
        (lambda: cosmos.executor("nowhere", "train"), "unknown cluster 'nowhere'"),
        (lambda: cosmos.executor("local", "trian"), "unknown stage 'trian'.*train"),
        (lambda: cosmos.task(tmp_path, "train"), "no run"),
        (lambda: cosmos.task(run, "preprocess", 7), "there is no preprocess.7 in run x"),
        (lambda: cosmos.experiment(run, ["nothing"]), "unknown stage 'nothing'"),
        (lambda: cosmos.post_train("ar_tinny"), "unknown recipe 'ar_tinny'.*ar_tiny"),
        (lambda: cosmos.post_train(overrides=["train.max_step=1"]), "max_steps"),
    ):
        with pytest.raises(RequestError, match=reason):
            call()
    (tmp_path / "box.yaml").write_text(SLURM)
    with pytest.raises(RequestError, match="run x was prepared for cluster local, .*=box"):
        cosmos.executor("box.yaml", "train", run)
    # NeMo-Run would write the folder of the job into such a path.
    (tmp_path / "nemo_run").mkdir()
    shutil.rmtree(run.path)
    run = prepared("box.yaml", "cluster.runs=nemo_run")
    with pytest.raises(RequestError, match="/nemo_run/x/.*choose another path"):
        cosmos.task(run, "download")


def test_recipes_are_changed_with_nemo_runs_syntax_and_checked_when_they_run(
    cosmos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nemo_run

    monkeypatch.chdir(tmp_path)
    partial = cosmos.post_train("ar_tiny", ["train.max_steps=7"])
    assert isinstance(partial, nemo_run.Partial)
    assert (partial.recipe.train.max_steps, partial.recipe.data.tokenizer) == (7, "small")
    partial.recipe.train.max_steps = 10
    assert partial.clone().recipe.train.max_steps == 10
    with pytest.raises(AttributeError, match=r"No parameter named 'max_step' .*max_steps"):
        partial.recipe.train.max_step = 10
    for section, key, value, reason in (
        ("train", "max_steps", 0, "recipe ar_tiny: train.max_steps=0: expected whole number"),
        ("data", "clips", "some", "data.clips='some'"),
        ("model", "num_query_groups", 3, "num_query_groups=3 does not divide"),
        ("data", "input", None, "data.input is not set"),
        ("data", "input", "nowhere", "nowhere"),
    ):
        changed = partial.clone()
        setattr(getattr(changed.recipe, section), key, value)
        with pytest.raises(RequestError, match=reason):
            nemo_run.run(changed)
    assert not (tmp_path / "runs").exists()


PARTIAL = """
import sys
import nemo_run as run
from cosmos_hpc import nemo_run as cosmos

partial = cosmos.preprocess("ar_tiny", name="first")
partial.recipe.data.input = sys.argv[1]
partial.recipe.data.split.seed += 1
run.run(partial, executor=run.LocalExecutor(), name="mine")
"""


@pytest.mark.slow
def test_a_partial_runs_with_an_executor_and_nemorun_goes_on(tmp_path: Path, scenes: Path) -> None:
    """From the command line the same run is trained: with types that NeMo-Run cannot read, too."""
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    said = run_program(PARTIAL, scenes, cwd=tmp_path, env={**CANARIES, **path})
    run = RunFolder(tmp_path / "runs" / "first")
    assert (run.tokens.path / "done.json").exists(), said
    assert run.recipe().data.split.seed == 1
    assert_no_secrets(tmp_path, said)
    words = ["post_train", "--factory", "ar_tiny", f"recipe.data.input={scenes}", "name=first"]
    words += ["recipe.data.split.seed=1", "recipe.data.compression=[8,16,16]"]
    words += [
        "recipe.generate.tasks=0",
        "recipe.train.max_steps=2",
        "recipe.train.sequence_parallel=null",
        "--yes",
    ]
    done = subprocess.run(
        [Path(sys.executable).with_name("nemorun"), "cosmos_hpc", *words],
        cwd=tmp_path,
        env={**CLOSED_HOME, **path, **CANARIES, "NEMORUN_HOME": "home", "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing run" in done.stderr
    state = json.loads(command("status", "first", "--json", cwd=tmp_path).out)
    assert state["state"] == "done"
    assert not (tmp_path / "runs" / "ar_tiny").exists()
    assert_no_secrets(tmp_path, done.stdout + done.stderr)
