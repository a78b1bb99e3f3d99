"""Samples from weights alone: of pictures, videos, texts and actions; what is kept and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import WorkError
from cosmos_hpc.models import from_published
from cosmos_hpc.models import generate as draw
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.runs.stages import is_done
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.conditioned import read_tensor
from cosmos_hpc.worker.evaluation.clips import ClipFrames
from cosmos_hpc.worker.generation.items import derived
from cosmos_hpc.worker.stages.generate import generate
from cosmos_hpc.worker.tokenizers.texts import prompt_file
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.clips import read_clip
from tests.worker.generation.setting_up import (
    SMALL,
    all_tokens,
    generating,
    picture,
    run_all,
    shown,
    tokens_of,
    video,
)


def with_other(recipe, **settings):
    """The recipe with other settings of its section generate."""
    return replace(recipe, generate=replace(recipe.generate, **settings))


def inputs(folder):
    """A list of a picture, a grey one, and two videos."""
    picture(folder / "one.PNG")
    picture(folder / "grey.jpg", "L")
    video(folder / "long.mp4", 20, seed=1)
    video(folder / "other.mp4", 9, seed=2)
    listed = folder / "list.txt"
    listed.write_text("one.PNG\ngrey.jpg\nlong.mp4\nother.mp4\n")
    return listed


def test_pictures_and_videos_are_continued(tmp_path):
    run, recipe = generating(tmp_path, "ar_tiny", f"generate.input={inputs(tmp_path)}")
    run_all(run, recipe)
    records = run.generated.records()
    assert [r["key"] for r in records] == ["0000-s0", "0001-s0", "0002-s0", "0003-s0"]
    assert [r["condition_frames"] for r in records] == [1, 1, 9, 9]
    assert [r["frame_rate"] for r in records] == [25, 25, 30, 30]
    tokenizer = VideoTokenizer(run.tokenizer, recipe.data.latent_shape)
    for record in records:
        assert record["source"] == str(tmp_path / Path(record["source"]).name)
        assert record["sampling"] == {"temperature": 1.0, "top_p": 0.5, "seed": 0}
        assert record["checkpoint"] == str(tmp_path / "weights.safetensors")
        assert record["versions"]["torch"] == torch.__version__
        frames = shown(run.generated.video(record["key"]))
        assert frames.shape == (17, 32, 64, 3)
        tokens = tokens_of(run, record["key"])
        assert tokens.shape == (1, 3, 2, 4)
        # What is to be seen is what the tokens decode to, compressed hardly visibly.
        decoded = tokenizer.decode(tokens)[0].permute(1, 2, 3, 0).numpy()
        assert np.abs(frames.astype(float) - decoded).mean() < 4
    # The last frames of a video, not its first, are the condition.
    source = read_clip(tmp_path / "long.mp4", 20, 32, 64).pixels[:, -9:]
    padded = np.concatenate([source, source[:, -1:].repeat(8, 1)], 1)
    given = tokenizer.encode(np.ascontiguousarray(padded)[None])[0, :2]
    assert torch.equal(tokens_of(run, "0002-s0")[0, :2], given)


def test_tokens_are_those_of_the_public_function(tmp_path):
    source = video(tmp_path / "v.mp4", 12)
    run, recipe = generating(tmp_path, "ar_tiny", f"generate.input={source}", "generate.top_p=0.9")
    run_all(run, recipe)
    (record,) = run.generated.records()
    assert record["seed"] == derived(0, "v.mp4:0")
    model = from_published(
        open_weights_of(tmp_path / "weights.safetensors"), recipe.model_for_clips()
    )
    got = tokens_of(run, "0000-s0").flatten()[None].long()
    expected = draw(model, got[:, :16], 8, top_p=0.9, seed=[record["seed"]])
    assert torch.equal(got, expected)


def open_weights_of(path):
    from safetensors.torch import load_file

    open_weights(path)
    return load_file(path)


def test_samples_are_the_same_whatever_the_number_of_array_tasks(tmp_path):
    listed = inputs(tmp_path)
    wanted = (f"generate.input={listed}", "generate.samples=3", "generate.batch_size=2")
    alone, recipe = generating(tmp_path / "a", "ar_tiny", *wanted)
    run_all(alone, recipe)
    shared, recipe = generating(tmp_path / "b", "ar_tiny", *wanted, "generate.tasks=3")
    for task in (2, 0, 1):
        assert not is_done(shared, recipe, "generate", task)
        generate(shared, recipe, task)
        assert is_done(shared, recipe, "generate", task)
    one, three = all_tokens(alone), all_tokens(shared)
    assert len(one) == 12
    assert one == three
    # Neither samples of one input nor of two are alike.
    assert len(set(one.values())) == 12


def test_samples_that_are_there_are_kept_until_something_else_is_asked_for(tmp_path):
    run, recipe = generating(
        tmp_path, "ar_tiny", f"generate.input={inputs(tmp_path)}", "generate.batch_size=1"
    )
    run_all(run, recipe)
    before = all_tokens(run)
    written = {key: run.generated.video(key).stat().st_mtime_ns for key in before}
    # Killed between the video and the record: no sample.
    run.generated.record("0001-s0").unlink()
    (run.path / "generated/tasks/00000.json").unlink()
    run_all(run, recipe)
    assert all_tokens(run) == before
    after = {key: run.generated.video(key).stat().st_mtime_ns for key in before}
    assert {key for key in before if after[key] != written[key]} == {"0001-s0"}
    other = with_other(recipe, seed=1)
    assert not is_done(run, other, "generate", 0)
    run_all(run, other)
    changed = all_tokens(run)
    assert all(changed[key] != before[key] for key in before)
    assert {record["sampling"]["seed"] for record in run.generated.records()} == {1}


def test_what_is_longer_than_a_clip_goes_on_from_its_last_frames(tmp_path):
    source = video(tmp_path / "v.mp4", 12)
    run, recipe = generating(tmp_path, "ar_tiny", f"generate.input={source}", "generate.seconds=1")
    run_all(run, recipe)
    (record,) = run.generated.records()
    assert record["frames"] == 30
    frames = shown(run.generated.video("0000-s0"))
    assert len(frames) == 30
    tokens = tokens_of(run, "0000-s0")
    # 17 frames, and 8 more with each further clip.
    assert tokens.shape == (3, 3, 2, 4)
    tokenizer = VideoTokenizer(run.tokenizer, recipe.data.latent_shape)
    first = tokenizer.decode(tokens[:1])[0].numpy()
    last = np.concatenate([first[:, -9:], first[:, -1:].repeat(8, 1)], 1)
    assert torch.equal(tokens[1, :2], tokenizer.encode(last[None])[0, :2])
    joined = ClipFrames(run, recipe).generated("0000-s0")
    assert joined.shape == (3, 33, 32, 64)
    assert np.abs(joined[:, :30].transpose(1, 2, 3, 0) - frames.astype(float)).mean() < 4


def test_a_text_is_read_with_the_frames(tmp_path):
    video(tmp_path / "v.mp4", 12)
    listed = tmp_path / "list.jsonl"
    rows = [{"visual_input": "v.mp4", "prompt": text} for text in ("a street", "a robot")]
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, recipe = generating(tmp_path, "ar_tiny_v2w", f"generate.input={listed}")
    run_all(run, recipe)
    weights = open_weights_of(tmp_path / "weights.safetensors")
    model = from_published(weights, recipe.model_for_clips())
    records = run.generated.records()
    assert [record["prompt"] for record in records] == ["a street", "a robot"]
    contexts = [read_tensor(prompt_file(run, record["prompt"])) for record in records]
    assert not torch.equal(*contexts)
    got = torch.stack([tokens_of(run, record["key"]).flatten() for record in records]).long()
    seeds = [record["seed"] for record in records]
    context = torch.stack(contexts)
    assert torch.equal(got, draw(model, got[:, :16], 8, context=context, top_p=0.5, seed=seeds))


def test_a_robot_moves_by_all_actions_of_a_file(tmp_path):
    picture(tmp_path / "now.png")
    actions = torch.randint(-99, 99, (5, 7)) / 64
    (tmp_path / "moves.json").write_text(json.dumps({"action": actions.tolist()}))
    run, recipe = generating(
        tmp_path,
        "ar_tiny_action",
        f"generate.input={tmp_path / 'now.png'}",
        f"generate.actions={tmp_path / 'moves.json'}",
    )
    run_all(run, recipe)
    (record,) = run.generated.records()
    assert (record["frames"], record["condition_frames"], record["frame_rate"]) == (6, 1, 5)
    assert tokens_of(run, "0000-s0").shape == (6, 1, 2, 4)
    # The fifth frame depends on the fourth action, and on no later one; and the actions are those
    # of the robot itself, where the model's were made alike.
    actions[4] = 9
    (tmp_path / "moves.json").write_text(json.dumps((actions * 2 + 0.5).tolist()))
    stats = tmp_path / "stats.json"
    files.write_json(stats, {"shift": [0.5] * 7, "scale": [2.0] * 7})
    again, recipe = generating(
        tmp_path / "again",
        "ar_tiny_action",
        f"generate.input={tmp_path / 'now.png'}",
        f"generate.actions={tmp_path / 'moves.json'}",
        f"generate.action_stats={stats}",
    )
    run_all(again, recipe)
    before, after = tokens_of(run, "0000-s0"), tokens_of(again, "0000-s0")
    assert torch.equal(before[:5], after[:5])
    files.write_json(stats, {"shift": [0.5], "scale": [2.0]})
    with pytest.raises(WorkError, match="is of 1 numbers, and the model's actions have 7"):
        generate(again, with_other(recipe, seed=1), 0)


def test_inputs_that_cannot_be_used_are_listed_and_the_others_generated(tmp_path):
    picture(tmp_path / "good.png")
    picture(tmp_path / "alpha.png", "RGBA")
    video(tmp_path / "few.mp4", 5)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.mp4").touch()
    names = ("alpha.png", "few.mp4", "good.png", "text.png", "empty.mp4", "gone.mp4")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(name + "\n" for name in names))
    run, recipe = generating(tmp_path, "ar_tiny", f"generate.input={listed}")
    run_all(run, recipe)
    assert [r["key"] for r in run.generated.records()] == ["0002-s0"]
    refused = {p.stem: files.read_json(p)["reason"] for p in run.generated.refused.glob("*.json")}
    for number, text in enumerate(
        (
            "transparent parts",
            "5 frames, fewer than the 9",
            None,
            "not a readable",
            "empty",
            "not there",
        )
    ):
        if text:
            assert text in refused[f"{number:04d}-s0"], refused
            assert names[number] in refused[f"{number:04d}-s0"]
    assert files.read_json(run.path / "generated/tasks/00000.json")["refused"] == 5


def test_without_any_sample_the_stage_fails_with_the_reason(tmp_path):
    source = picture(tmp_path / "alpha.png", "RGBA")
    run, recipe = generating(tmp_path, "ar_tiny", f"generate.input={source}")
    with pytest.raises(WorkError, match="alpha.png: the picture has transparent parts"):
        run_all(run, recipe)
    assert not is_done(run, recipe, "generate")
    # Mended, it is looked at again.
    picture(source)
    run_all(run, recipe)
    assert is_done(run, recipe, "generate")
    assert len(run.generated.records()) == 1


GUARDS = {
    "blocks_prompt": "return 'no robots' if prompt and 'robot' in prompt else None",
    "blocks_samples": "return 'too long' if len(frames) > 9 else None",
    "fails": "raise KeyError('model')",
    "passes": "assert frames.dtype.name == 'uint8' and frames.shape[1:] == (32, 64, 3)",
}


@pytest.mark.parametrize(
    ("name", "made", "reason"),
    [
        ("blocks_prompt", ["0000-s0"], "refused by the guard: no robots"),
        ("blocks_samples", [], "refused by the guard: too long"),
        ("fails", [], "the guard failed: KeyError: 'model'"),
        ("passes", ["0000-s0", "0001-s0"], None),
    ],
)
def test_a_guard_sees_prompts_and_frames_and_may_refuse(tmp_path, name, made, reason):
    text = "".join(f"def {key}(prompt, frames):\n    {body}\n" for key, body in GUARDS.items())
    (tmp_path / "guards.py").write_text(text)
    video(tmp_path / "v.mp4", 12)
    rows = [{"visual_input": "v.mp4", "prompt": text} for text in ("a street", "a robot")]
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, recipe = generating(
        tmp_path,
        "ar_tiny_v2w",
        f"generate.input={listed}",
        f"generate.guard={tmp_path / 'guards.py'}:{name}",
    )
    if made:
        run_all(run, recipe)
    else:
        with pytest.raises(WorkError, match="guard"):
            run_all(run, recipe)
    # What is refused is not there in any form.
    assert [r["key"] for r in run.generated.records()] == made
    assert sorted(p.stem for p in run.generated.path.glob("*.mp4")) == made
    assert sorted(all_tokens(run)) == made
    refused = [files.read_json(p)["reason"] for p in run.generated.refused.glob("*.json")]
    assert len(refused) == 2 - len(made)
    assert all(reason in text for text in refused)


def test_weights_of_another_model_are_refused(tmp_path):
    source = picture(tmp_path / "p.png")
    run, _ = generating(tmp_path, "ar_tiny", f"generate.input={source}")
    wider = load_recipe(
        "ar_tiny", [*SMALL, "model.num_layers=3", f"generate.input={source}",
                    f"train.init_from={tmp_path / 'weights.safetensors'}"]
    )  # fmt: skip
    with pytest.raises(WorkError, match="2 layers|lacks|num_layers|missing"):
        run_all(run, wider)
