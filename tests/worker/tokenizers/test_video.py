"""An encoder of convolutions, which may round differently by batch, gives the same ids anyway."""

import importlib.util

import numpy as np
import pytest
import torch

from cosmos_hpc.errors import WorkError
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from tests.conftest import REPOSITORY

SHAPE = (17, 64, 96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = REPOSITORY / "benchmarks" / "random_tokenizer.py"
    spec = importlib.util.spec_from_file_location("random_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("tokenizer")
    module.write_random_tokenizer(folder, SHAPE, width=8, blocks=1, device="cpu")
    return folder


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (6, 3, *SHAPE), np.uint8)


def test_ids_depend_neither_on_the_batch_nor_on_what_came_before(folder, clips):
    tokenizer = VideoTokenizer(folder, (3, 4, 6))
    together = tokenizer.encode(clips)
    assert together.shape == (6, 3, 4, 6)
    assert together.unique().numel() > 50
    for batch in (1, 4):
        fresh = VideoTokenizer(folder, (3, 4, 6))
        parts = [fresh.encode(clips[i : i + batch]) for i in range(0, 6, batch)]
        assert torch.equal(torch.cat(parts), together)
    assert torch.equal(tokenizer.encode(clips), together)
    assert torch.equal(tokenizer.encode(torch.from_numpy(clips[2:3]))[0], together[2])


def test_clips_that_are_started_one_after_the_other(folder, clips):
    tokenizer = VideoTokenizer(folder, (3, 4, 6))
    tokenizer.pin(clips)  # without a GPU, nothing
    under_way = [tokenizer.start(clip) for clip in clips]
    assert torch.equal(torch.stack([e.ids() for e in under_way]), tokenizer.encode(clips))
    tokenizer.unpin()


def test_another_latent_shape_is_refused(folder, clips):
    with pytest.raises(WorkError, match=r"gives tokens of shape \[3, 4, 6\], the recipe expects"):
        VideoTokenizer(folder, (2, 4, 6)).start(clips[0]).ids()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ids_of_a_gpu_do_not_depend_on_what_runs_beside(folder, clips):
    one = VideoTokenizer(folder, (3, 4, 6), "cuda")
    alone = torch.stack([one.start(clip).ids() for clip in clips])
    assert alone.unique().numel() > 50
    several = VideoTokenizer(folder, (3, 4, 6), "cuda", streams=4)
    several.pin(clips)
    assert torch.equal(several.encode(clips), alone)
    assert torch.equal(several.encode(clips[::-1].copy()), alone.flip(0))
    for _ in range(20):
        assert torch.equal(several.encode(clips), alone)
    several.unpin()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_without_enough_memory_is_an_error(folder):
    frame = torch.zeros((), dtype=torch.uint8).expand(3, 17, 100_000, 100_000)
    tokenizer = VideoTokenizer(folder, (3, 4, 6), "cuda")
    with pytest.raises(WorkError, match="not enough memory to encode clips of 17x100000x100000"):
        tokenizer.start(frame)
