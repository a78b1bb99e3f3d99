"""What `make demo` makes: a model that continues videos which it has not seen."""

import re

import pytest
import torch

from cosmos_hpc.models import generate
from cosmos_hpc.models.checkpoints.published import load_weights, one_rank
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.megatron import megatron_config
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.samples import split_documents
from cosmos_hpc.worker.tokenizers.small import write_small_tokenizer
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.training.checkpoints import latest_checkpoint
from cosmos_hpc.worker.video.clips import read_clip
from tests.conftest import REPOSITORY, cosmos_hpc

pytestmark = pytest.mark.slow

#: Frames that are given: two of the three latent frames of a clip.
GIVEN = 9


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The run of the demo's own two commands."""
    home = tmp_path_factory.mktemp("demo")
    makefile = (REPOSITORY / "Makefile").read_text().replace("$(DEMO)/", "")
    for words in re.findall(r"^\t\$\(bin\)/cosmos-hpc (.*)", makefile, re.MULTILINE):
        done = cosmos_hpc(*words.split(), cwd=home, timeout=1800)
        assert done.code == 0, done.err
    return RunFolder(home / "runs" / "demo")


def load_decoder(run):
    model = run.recipe().model_for_clips()
    one_rank()
    settings = megatron_config(model, cpu=True, transformer_impl="local")
    decoder = CosmosDecoder(settings, model, pre_process=True, post_process=True)
    _, checkpoint = latest_checkpoint(run.train.checkpoints)
    assert load_weights(decoder, model, open_weights(checkpoint)) == []
    return decoder.eval()


def psnr(made, true):
    """Decibels of each clip."""
    return 10 * torch.log10(255**2 / ((made.float() - true) ** 2).mean((1, 2, 3, 4)))


def test_validation_loss_falls_far_below_that_of_an_untrained_model(demo):
    marker = files.read_json(marker_path(demo, "train"))
    assert marker["validation_loss"] < marker["reference"]["untrained"] - 6


def test_generated_frames_beat_repeating_the_last_one(demo, tmp_path):
    recipe = demo.recipe()
    rows = files.read_jsonl(demo.tokens.clips)
    parts = split_documents(rows, recipe.data.split)
    held_out = [*parts["validation"], *parts["test"]]
    videos = [demo.path.parents[1] / "videos" / rows[document]["video"] for document in held_out]
    size = (recipe.data.frames, recipe.data.height, recipe.data.width)
    pixels = torch.stack([torch.as_tensor(read_clip(video, *size).pixels) for video in videos])
    true = pixels[:, :, GIVEN:].float()
    write_small_tokenizer(tmp_path, recipe.data.compression)
    tokenizer = VideoTokenizer(tmp_path, recipe.data.latent_shape)
    ids = tokenizer.encode(pixels).long()
    given = ids[:, :2].flatten(1)
    made = generate(load_decoder(demo), given, ids[0, 2:].numel(), top_p=0.5)
    generated, best = (
        psnr(tokenizer.decode(x.view_as(ids))[:, :, GIVEN:], true) for x in (made, ids)
    )
    repeated = psnr(pixels[:, :, GIVEN - 1 : GIVEN].expand_as(true), true)
    print(f"PSNR: {repeated.mean():.2f} {generated.mean():.2f} {best.mean():.2f} dB")
    assert best.mean() > repeated.mean() + 3
    assert generated.mean() > repeated.mean() + 1
