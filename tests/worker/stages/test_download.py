"""What the workers read: written, in a folder, fetched, or in the Hub's cache without a network."""

import random
import subprocess
import time
from pathlib import Path

import pytest
import torch

from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.errors import Stopped, WorkError
from cosmos_hpc.models.checkpoints.published_files import PublishedWeights
from cosmos_hpc.models.checkpoints.writer import WriteJob, write_nemo_weights
from cosmos_hpc.models.shapes import published_shapes
from cosmos_hpc.runs.fetched import initial_weights, tokenizer_folder
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path, stages_of, task_command
from cosmos_hpc.utils import files
from cosmos_hpc.worker.stages.download import download
from cosmos_hpc.worker.tokenizers.small import write_small_tokenizer
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from tests.worker.preparing import opened

HUB = "nvidia/Cosmos-1.0-Tokenizer-DV8x16x16"
WEIGHTS = "nvidia/Cosmos-1.0-Autoregressive-4B"


def run_and_recipe(tmp_path, tokenizer):
    run = RunFolder(tmp_path / "run")
    return run, load_recipe("ar_tiny", [f"data.tokenizer={tokenizer}"])


def offline(monkeypatch, tmp_path):
    """What the Hub's library reads at import."""
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))


def cached(tmp_path) -> Path:
    """The Hub's cache layout, as if the tokenizer had been downloaded."""
    repository = tmp_path / "hf" / "hub" / f"models--{HUB.replace('/', '--')}"
    commit = "0" * 40
    files.write_atomic(repository / "refs" / "main", commit)
    write_small_tokenizer(repository / "snapshots" / commit, (8, 16, 16))
    return repository / "snapshots" / commit


def test_written(tmp_path):
    run, recipe = run_and_recipe(tmp_path, "small")
    with pytest.raises(WorkError, match="its download stage has not run"):
        tokenizer_folder(run)
    download(run, recipe)
    VideoTokenizer(tokenizer_folder(run), (3, 6, 10))


def test_in_a_folder(tmp_path):
    write_small_tokenizer(tmp_path / "mine", (8, 16, 16))
    run, recipe = run_and_recipe(tmp_path, tmp_path / "mine")
    download(run, recipe)
    assert tokenizer_folder(run) == tmp_path / "mine"
    (tmp_path / "mine" / "decoder.jit").unlink()
    with pytest.raises(WorkError, match=r"has no decoder.jit"):
        download(run, recipe)


def test_from_a_filled_cache_without_a_network(tmp_path, monkeypatch):
    offline(monkeypatch, tmp_path)
    snapshot = cached(tmp_path)
    run, recipe = run_and_recipe(tmp_path, HUB)
    download(run, recipe)
    assert tokenizer_folder(run) == snapshot
    VideoTokenizer(tokenizer_folder(run), (3, 6, 10))


def test_not_in_the_cache_and_no_network(tmp_path, monkeypatch):
    offline(monkeypatch, tmp_path)
    run, recipe = run_and_recipe(tmp_path, HUB)
    with pytest.raises(WorkError, match="is not in the cache below HF_HOME, and the Hub cannot"):
        download(run, recipe)
    assert not marker_path(run, "download").exists()


def test_hf_home_must_be_set(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    run, recipe = run_and_recipe(tmp_path, HUB)
    with pytest.raises(WorkError, match="HF_HOME is not set: set it to a folder on the shared"):
        download(run, recipe)


def test_a_stop_leaves_a_half_file_to_go_on_with(hub, tmp_path, scenes):
    content = random.Random(0).randbytes(40_000_000)
    hub.repositories[HUB] = {"encoder.jit": content, "decoder.jit": b"4"}
    how = (f"data.tokenizer={HUB}", f"data.input={scenes}")
    run, recipe = opened(tmp_path / "run", "ar_tiny", *how)
    hub.bytes_a_second = 4_000_000
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "download"]
    worker = subprocess.Popen(task_command(run, stage), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size for p in tmp_path.rglob("*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    files.write_atomic(run.stop_request, "")
    said, _ = worker.communicate(timeout=8)
    assert worker.returncode == Stopped.exit_code
    assert said.endswith("stopped; what is done so far is kept\n")
    run.stop_request.unlink()
    hub.bytes_a_second = None
    download(run, recipe)
    assert any(asked for _, asked in hub.transfers())
    assert (tokenizer_folder(run) / "encoder.jit").read_bytes() == content


#: Of a model whose weights are a few megabytes.
SMALL = [
    "model.num_layers=1",
    "model.hidden_size=8",
    "model.ffn_hidden_size=8",
    "model.num_attention_heads=2",
    "model.num_query_groups=2",
    "model.kv_channels=6",
]


def tiny(start) -> Recipe:
    return load_recipe("ar_tiny", [*SMALL, f"train.init_from={start}"])


@pytest.fixture(scope="module")
def nemo_files(tmp_path_factory) -> dict[str, bytes]:
    """Files below ``nemo/`` of a published checkpoint of such a model."""
    folder = tmp_path_factory.mktemp("published") / "nemo"
    model = tiny("null").model
    shapes = published_shapes(model).items()
    zeros = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes}
    job = WriteJob(PublishedWeights(zeros, "zeros"), model, torch.bfloat16, lambda _: None)
    write_nemo_weights(job, folder / "weights")
    (folder / "context").mkdir()
    (folder / "context" / "model.yaml").write_text("{}")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder.parent)): path.read_bytes() for path in paths}


def test_published_weights(hub, tmp_path, nemo_files):
    hub.repositories[WEIGHTS] = {"model.pt": b"x", **nemo_files}
    hub.repositories[HUB] = {"encoder.jit": b"3", "decoder.jit": b"4", "autoencoder.jit": b"x"}
    run, recipe = RunFolder(tmp_path / "run"), load_recipe("ar4b", SMALL)
    with pytest.raises(WorkError, match=f"no {WEIGHTS} yet: its download stage has not run"):
        initial_weights(run, recipe)
    download(run, recipe)
    weights = initial_weights(run, recipe)
    assert weights.name == "nemo"
    assert weights.is_absolute()
    for name, content in nemo_files.items():
        assert (weights.parent / name).read_bytes() == content
    assert (tokenizer_folder(run) / "encoder.jit").read_bytes() == b"3"
    assert not (weights.parent / "model.pt").exists()
    assert files.read_json(marker_path(run, "download")) == {
        "tokenizer": HUB,
        "folder": str(tokenizer_folder(run)),
        "text_encoder": None,
        "init_from": str(weights),
    }


def test_one_repository_may_hold_both(hub, tmp_path, nemo_files):
    hub.repositories["me/all"] = {"encoder.jit": b"3", "decoder.jit": b"4", **nemo_files}
    run = RunFolder(tmp_path / "run")
    recipe = load_recipe("ar4b", [*SMALL, "data.tokenizer=me/all", "train.init_from=me/all"])
    download(run, recipe)
    assert initial_weights(run, recipe) == tokenizer_folder(run) / "nemo"


def test_the_small_tokenizer_and_published_weights(hub, tmp_path, nemo_files):
    hub.repositories[WEIGHTS] = nemo_files
    run = RunFolder(tmp_path / "run")
    download(run, tiny(WEIGHTS))
    assert tokenizer_folder(run) == run.tokenizer
    assert (initial_weights(run, tiny(WEIGHTS)) / "weights" / ".metadata").exists()


def test_weights_of_another_model_fail_before_hours_of_preparing(hub, tmp_path, nemo_files):
    hub.repositories[WEIGHTS] = nemo_files
    run = RunFolder(tmp_path / "run")
    other = load_recipe("ar_tiny", [*SMALL, "model.num_layers=2", f"train.init_from={WEIGHTS}"])
    with pytest.raises(WorkError, match=r"holds the weights of another model: 8 missing"):
        download(run, other)
    assert not marker_path(run, "download").exists()
    with pytest.raises(WorkError, match="holds no distributed checkpoint"):
        download(run, tiny(tmp_path))


def test_weights_that_need_no_fetching(tmp_path):
    run = RunFolder(tmp_path / "run")
    download(run, tiny("null"))
    assert initial_weights(run, tiny("null")) is None
    assert initial_weights(run, tiny(tmp_path)) == tmp_path
    # The marker of an earlier version.
    files.write_json(marker_path(run, "download"), {"tokenizer": "small", "folder": "."})
    assert initial_weights(run, tiny("null")) is None
    assert initial_weights(run, tiny(tmp_path)) == tmp_path
    with pytest.raises(WorkError, match="its download stage has not run"):
        initial_weights(run, tiny(WEIGHTS))


def test_what_the_hub_refuses_fails_the_stage(hub, tmp_path):
    run = RunFolder(tmp_path / "run")
    with pytest.raises(WorkError, match=f"there is no repository {WEIGHTS} on the Hub"):
        download(run, tiny(WEIGHTS))
    hub.repositories[WEIGHTS] = {"nemo/a.json": b"[1]"}
    hub.gated = {WEIGHTS}
    with pytest.raises(
        WorkError, match=f"{WEIGHTS} is gated: accept its licence on its Hub page a"
    ):
        download(run, tiny(WEIGHTS))
    assert not marker_path(run, "download").exists()
