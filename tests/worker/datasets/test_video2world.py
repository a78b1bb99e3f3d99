"""Videos and prompts become the guide's files, the same whatever happens on the way."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset

from cosmos_hpc.errors import Stopped, WorkError
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.utils.links import Links
from cosmos_hpc.worker.stages.finalize import finalize
from cosmos_hpc.worker.stages.preprocess import preprocess
from cosmos_hpc.worker.tokenizers.texts import TextEncoder, distinct_prompts, prompt_file
from tests.worker.preparing import kill_when, planned, prepared, samples
from tests.worker.robots import write_bridge, write_clip
from tests.worker.t5 import write_t5

SMALL = ("data.frames=9", "data.height=48", "data.width=80")


@pytest.fixture(scope="module")
def source(tmp_path_factory, scenes):
    """Settings of eight videos with five different prompts."""
    folder = tmp_path_factory.mktemp("texts")
    listed = folder / "list.jsonl"
    rows = [
        {"visual_input": str(scenes / f"scene-{i:04d}.mp4"), "prompt": f"scene {i % 5} of cars"}
        for i in range(8)
    ]
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = f"data.text_encoder={write_t5(folder / 't5')}"
    return (f"data.input={listed}", encoder, *SMALL)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, source):
    """Prepared in one shard."""
    path = tmp_path_factory.mktemp("runs") / "reference"
    return prepared(path, "ar_tiny_v2w", *source, shards=1)


def test_the_files_are_those_of_the_guide(reference, source):
    folder = reference.tokens.samples
    assert files.read_json(folder / "metadata.json") == {
        "train_samples": 6,
        "val_samples": 1,
        "test_samples": 1,
    }
    table = files.read_jsonl(folder / "samples.jsonl")
    assert len({row["video"] for row in table}) == 8
    encoder = TextEncoder(reference.tokenizer / reference.recipe().data.text_encoder)
    ids = IndexedDataset(str(reference.tokens.prefix))
    for row in table:
        part, number = row["sample"].split("_")
        prompt = torch.load(folder / f"{part}_prompt_{number}.pt", weights_only=True)
        video = torch.load(folder / f"{part}_video_{number}.pt", weights_only=True)
        assert (prompt.shape, prompt.dtype) == ((512, 64), torch.bfloat16)
        assert torch.equal(prompt, encoder.encode(row["prompt"])[0])
        # 2x3x5 ids with begin-of-video, filled to 64 inputs and one.
        assert (len(video), video.dtype) == (65, torch.int32)
        assert video[0] == 64000
        assert np.array_equal(video[1:31], ids[row["document"]])
        assert video[31:].unique().tolist() == [64002]


def test_full_size_has_64_of_padding():
    from cosmos_hpc.config.recipes import load_recipe
    from cosmos_hpc.worker.datasets.samples import padded_sequence

    recipe = load_recipe("ar5b_v2w")
    ids = torch.arange(recipe.data.ids_per_clip)
    sequence = padded_sequence(ids, recipe.model_for_clips().sequence_length)
    assert sequence.tolist() == [64000, *range(12_800), *[64002] * 64]


def test_samples_with_one_prompt_share_its_embedding(reference):
    assert len(list(reference.tokens.prompts.glob("*.pt"))) == 5
    links = [p.stat().st_ino for p in reference.tokens.samples.glob("*_prompt_*.pt")]
    assert (len(links), len(set(links))) == (8, 5)


def test_samples_are_shuffled_with_the_seed_of_the_split(tmp_path, reference, source):
    def order(run):
        return [row["video"] for row in files.read_jsonl(run.tokens.samples / "samples.jsonl")]

    assert order(reference) != sorted(order(reference))
    other = prepared(tmp_path / "run", "ar_tiny_v2w", *source, "data.split.seed=1", shards=1)
    assert order(other) != order(reference)
    assert sorted(order(other)) == sorted(order(reference))


@pytest.mark.parametrize(("shards", "prompts", "batch"), [(2, 2000, 1), (3, 2, 3), (5, 1, 8)])
def test_files_do_not_depend_on_shards_or_batches(
    tmp_path, reference, source, shards, prompts, batch
):
    how = (f"data.prompts_per_shard={prompts}", f"data.batch_size={batch}")
    run = prepared(tmp_path / "run", "ar_tiny_v2w", *source, *how, shards=shards)
    assert samples(run) == samples(reference)
    markers = [files.read_json(p) for p in sorted(run.tokens.prompts.glob("*.json"))]
    owned = [name for marker in markers for name in marker["sha256"]]
    assert (len(owned), len(set(owned))) == (5, 5)
    assert len(markers) == min(shards, -(-5 // prompts))


@pytest.mark.slow
def test_a_killed_worker_goes_on_and_changes_nothing(tmp_path, reference, source):
    run, recipe = planned(tmp_path / "run", "ar_tiny_v2w", *source, "data.batch_size=1", shards=1)
    moments = [
        kill_when(run, recipe, lambda n=n: len(list(run.tokens.prompts.glob("*.pt"))) >= n)
        for n in (1, 3)
    ]
    kept = {p: p.stat().st_mtime_ns for p in run.tokens.prompts.glob("*.pt")}
    moments.append(
        kill_when(run, recipe, lambda: len(files.read_jsonl(run.tokens.journal(0))) >= 2)
    )
    assert any(moments)
    assert kept
    preprocess(run, recipe, 0)
    finalize(run, recipe)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert samples(run) == samples(reference)


def test_stopped_on_request_between_prompts(tmp_path, source):
    run, recipe = planned(tmp_path / "run", "ar_tiny_v2w", *source, shards=1)
    files.write_atomic(run.stop_request, "")
    with pytest.raises(Stopped, match="stopped after 1 of 5 prompts"):
        preprocess(run, recipe, 0)
    run.stop_request.unlink()
    preprocess(run, recipe, 0)
    assert files.read_json(run.tokens.prompts / "00000.json")["prompts"] == 5


def test_finalize_again_gives_the_same_split(tmp_path, source, reference):
    run, recipe = planned(tmp_path / "run", "ar_tiny_v2w", *source, shards=1)
    preprocess(run, recipe, 0)
    for _ in range(2):
        finalize(run, recipe)
        assert samples(run) == samples(reference)


def test_finalize_goes_on_with_the_samples_of_an_attempt_that_was_stopped(
    tmp_path, source, reference
):
    run, recipe = planned(tmp_path / "run", "ar_tiny_v2w", *source, shards=1)
    preprocess(run, recipe, 0)
    finalize(run, recipe)
    begun = run.tokens.samples.with_name(".samples.tmp")
    run.tokens.samples.rename(begun)
    damaged = {"train_video_1.pt", "train_prompt_2.pt"}
    whole = [p for p in begun.glob("train_*.pt") if p.name not in damaged]
    kept = {p.name: p.stat().st_ino for p in whole}
    changed = begun / "train_video_1.pt"
    changed.write_bytes(changed.read_bytes()[:-1])
    for name in ("train_prompt_2.pt", "val_video_0.pt"):
        (begun / name).unlink()
    (begun / "train_prompt_2.pt").write_bytes(b"half")
    (begun / "train_video_99.pt").write_bytes(b"of more videos")
    marker_path(run, "finalize").unlink()
    finalize(run, recipe)
    assert samples(run) == samples(reference)
    assert kept.items() <= {p.name: p.stat().st_ino for p in run.tokens.samples.iterdir()}.items()


def test_a_damaged_embedding_is_found_and_made_again(tmp_path, source, reference):
    run, recipe = planned(tmp_path / "run", "ar_tiny_v2w", *source, shards=1)
    preprocess(run, recipe, 0)
    damaged = prompt_file(run, distinct_prompts(run)[2])
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(WorkError, match=f"{damaged.name} is not there or not what its shard's ma"):
        finalize(run, recipe)
    (run.tokens.shard(0) / "done.json").unlink()
    preprocess(run, recipe, 0)
    finalize(run, recipe)
    assert samples(run) == samples(reference)


def test_instructions_of_robot_clips_keep_the_folder_s_own_parts(tmp_path, source):
    folder = write_bridge(tmp_path / "bridge", {"train": 5, "val": 2})
    write_clip(folder, "train", "999", 4, texts=[])
    run = prepared(tmp_path / "run", "ar_tiny_v2w", *source, f"data.input={folder}")
    assert files.read_json(run.tokens.samples / "metadata.json") == {
        "train_samples": 5,
        "val_samples": 2,
        "test_samples": 0,
    }
    for row in files.read_jsonl(run.tokens.samples / "samples.jsonl"):
        assert row["video"].startswith(f"videos/{row['sample'].split('_')[0]}/")
        assert row["prompt"] == f"move {int(row['video'].split('/')[2]) % 3} to the pot"
    (failed,) = files.read_jsonl(run.tokens.failed)
    assert (failed["kind"], failed["video"]) == ("annotation", "videos/train/999/rgb.mp4")


def test_a_text_encoder_of_another_width_is_refused_by_the_download(tmp_path, source):
    wide = write_t5(tmp_path / "wide", width=32)
    with pytest.raises(WorkError, match="embeddings 32 wide, and model.context_width is 64"):
        planned(tmp_path / "run", "ar_tiny_v2w", *source, f"data.text_encoder={wide}")
    (wide / "config.json").write_text('{"model_type": "bert", "d_model": 64}')
    with pytest.raises(WorkError, match="is a model of type bert, not t5"):
        planned(tmp_path / "run", "ar_tiny_v2w", *source, f"data.text_encoder={wide}")
    (wide / "tokenizer.json").unlink()
    with pytest.raises(WorkError, match="has no tokenizer.json or spiece.model"):
        planned(tmp_path / "run", "ar_tiny_v2w", *source, f"data.text_encoder={wide}")


def test_a_file_that_may_have_no_more_names_is_copied_once(tmp_path, monkeypatch):
    """The limit of ext4, at three names instead of 65 000."""
    link = os.link

    def limited(source, target):
        if source.stat().st_nlink >= 3:
            raise OSError(errno.EMLINK, "Too many links")
        link(source, target)

    monkeypatch.setattr(os, "link", limited)
    (tmp_path / "source").write_text("x")
    links = Links()
    for i in range(7):
        links.link(tmp_path / "source", tmp_path / f"{i}")
    assert {(tmp_path / f"{i}").read_text() for i in range(7)} == {"x"}
    assert len({(tmp_path / f"{i}").stat().st_ino for i in range(7)}) == 3
