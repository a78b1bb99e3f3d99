"""Prompts become the embeddings that transformers gives, cheaply and once."""

import gc
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer, T5EncoderModel

from cosmos_hpc.errors import WorkError
from cosmos_hpc.worker.datasets import shard as shard_module
from cosmos_hpc.worker.stages.preprocess import preprocess
from cosmos_hpc.worker.tokenizers.texts import TextEncoder, write_small_text_encoder
from tests.conftest import REPOSITORY
from tests.worker.preparing import planned
from tests.worker.t5 import write_t5

PROMPTS = ("put the pot on the blue cloth", "the car in the road", "ü", "Move sushi " * 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.mark.parametrize("safe", [False, True])
def test_embeddings_are_those_of_padding_with_a_mask_and_zeroing(tmp_path, safe):
    folder = write_t5(tmp_path, safe=safe)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = T5EncoderModel.from_pretrained(str(folder)).eval()
    encoder = TextEncoder(folder)
    for prompt in PROMPTS:
        batch = tokenizer(
            prompt, return_tensors="pt", truncation=True, padding="max_length", max_length=512
        )
        with torch.no_grad():
            expected = model(**batch).last_hidden_state[0].clone()
        length = int(batch.attention_mask.sum())
        expected[length:] = 0
        embedding, cut = encoder.encode(prompt)
        assert (embedding.shape, embedding.dtype, cut) == ((512, 64), torch.bfloat16, False)
        assert not embedding[length:].any()
        assert embedding[:length].any(1).all()
        torch.testing.assert_close(embedding, expected.bfloat16())


def test_a_prompt_longer_than_the_positions_is_cut_as_t5_does(folder):
    long, cut = TextEncoder(folder).encode("pot " * 600)
    assert cut
    assert long.any(1).all()
    # The end of the text stays the last token.
    assert torch.equal(long, TextEncoder(folder).encode("pot " * 700)[0])


def test_of_a_model_with_a_decoder_only_the_encoder_is_kept_in_memory(tmp_path):
    """A file of 500 MB, of which the encoder is a tenth."""
    folder = write_t5(tmp_path, decoder_layers=60, d_ff=16384)
    size = (folder / "pytorch_model.bin").stat().st_size
    script = """
import json, sys, threading, time
from pathlib import Path
from cosmos_hpc.worker.tokenizers.texts import TextEncoder

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

import transformers
from transformers import AutoTokenizer, T5EncoderModel
before, most, done = anonymous(), [0], threading.Event()
def watch():
    while not done.is_set():
        most[0] = max(most[0], anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
encoder = TextEncoder(Path(sys.argv[1]))
done.set()
watcher.join()
print(json.dumps({"kept": anonymous() - before, "most": most[0] - before}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    memory = json.loads(done.stdout.splitlines()[-1])
    assert size > 450e6
    assert memory["most"] < 0.3 * size, memory


def test_the_text_encoder_is_gone_before_the_tokenizer_is_loaded(tmp_path, scenes, monkeypatch):
    def encoders():
        gc.collect()
        # By type: some objects of other libraries raise when they are asked for their class.
        return sum(issubclass(type(o), T5EncoderModel) for o in gc.get_objects())

    before, seen = encoders(), []
    listed = tmp_path / "list.jsonl"
    listed.write_text(
        json.dumps({"visual_input": str(scenes / "scene-0000.mp4"), "prompt": "a pot"})
    )
    run, recipe = planned(
        tmp_path / "run",
        "ar_tiny_v2w",
        f"data.input={listed}",
        f"data.text_encoder={write_t5(tmp_path / 't5')}",
        shards=1,
    )

    class Loaded(shard_module.VideoTokenizer):
        def __init__(self, *arguments):
            seen.append(encoders())
            super().__init__(*arguments)

    monkeypatch.setattr(shard_module, "VideoTokenizer", Loaded)
    kept = TextEncoder(tmp_path / "t5")
    assert encoders() == before + 1  # such a model would be seen
    del kept
    preprocess(run, recipe, 0)
    assert seen == [before]


def test_folders_that_are_no_text_encoder(tmp_path):
    with pytest.raises(WorkError, match="the text encoder in .* cannot be loaded: "):
        TextEncoder(tmp_path)
    folder = write_t5(tmp_path / "t5")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(WorkError, match=r"lacks encoder.block.1.layer.0.SelfAttention.q.weight"):
        TextEncoder(folder)


def test_weights_that_would_run_code_are_refused(tmp_path):
    folder = write_t5(tmp_path / "t5")

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(WorkError, match="cannot be loaded"):
        TextEncoder(folder)
    assert not (tmp_path / "ran").exists()


def test_the_small_text_encoder_tells_prompts_apart_and_is_always_the_same(tmp_path):
    state = torch.get_rng_state()
    for name in ("a", "b"):
        write_small_text_encoder(tmp_path / name, 64)
    assert torch.equal(torch.get_rng_state(), state)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names
    )
    encoder = TextEncoder(tmp_path / "a")
    one, other = (encoder.encode(p)[0].float() for p in ("a red car", "a red cat"))
    assert (one[8] - other[8]).norm() > 0.1 * one[8].norm()


def test_a_model_with_a_sentencepiece_file_alone(tmp_path):
    import sentencepiece

    folder = write_t5(tmp_path / "t5")
    (folder / "tokenizer.json").unlink()
    text = tmp_path / "text.txt"
    text.write_text("put the pot on the blue cloth\nmove the sushi to the car\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        hard_vocab_limit=False,
        model_prefix=str(folder / "spiece"),
        vocab_size=26,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    embedding, cut = TextEncoder(folder).encode("move the pot")
    assert not cut
    assert 3 < embedding.any(1).sum() < 20
