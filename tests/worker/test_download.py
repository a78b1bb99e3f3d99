"""Finding the tokenizer: written, in a folder, or in the Hub's cache without a network."""

from pathlib import Path

import pytest

from cosmos_hpc import files
from cosmos_hpc.errors import WorkError
from cosmos_hpc.recipes import load_recipe
from cosmos_hpc.runs import RunFolder
from cosmos_hpc.worker.download import download, tokenizer_folder
from cosmos_hpc.worker.small_tokenizer import write_small_tokenizer
from cosmos_hpc.worker.tokenizer import VideoTokenizer

HUB = "nvidia/Cosmos-1.0-Tokenizer-DV8x16x16"


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
    assert not run.marker("download").exists()


def test_hf_home_must_be_set(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    run, recipe = run_and_recipe(tmp_path, HUB)
    with pytest.raises(WorkError, match="HF_HOME is not set: set it to a folder on the shared"):
        download(run, recipe)
