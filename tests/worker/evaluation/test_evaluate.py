"""Scores of held-out clips, beside what a slow computation of the test's own gives."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from cosmos_hpc.data.parts import FOLDERS
from cosmos_hpc.models import from_published
from cosmos_hpc.runs.scores import render_scores
from cosmos_hpc.runs.stages import is_done
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.conditioned import read_tensor
from cosmos_hpc.worker.datasets.documents import open_documents
from cosmos_hpc.worker.evaluation.clips import ClipFrames
from cosmos_hpc.worker.stages.evaluate import evaluate
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.clips import read_clip
from tests.worker.generation.setting_up import run_all, shown, tokens_of, trained, video
from tests.worker.robots import write_bridge


def scores_of(run, recipe):
    """What the two stages say of a run."""
    run_all(run, recipe)
    evaluate(run, recipe)
    assert is_done(run, recipe, "evaluate")
    return files.read_json(run.evaluation.metrics)


def psnr(frames, truth):
    """Of each frame of ``[3, T, H, W]``."""
    error = ((frames.astype(float) - truth) ** 2).mean((0, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-30))


def ssim(frames, truth):
    """Likewise, as Wang et al. (2004) define it, in float64."""

    def mean(x):
        return gaussian_filter(x, (0, 0, 1.5, 1.5), truncate=3.5)[..., 5:-5, 5:-5]

    x, y = frames.astype(float), truth.astype(float)
    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    places = (2 * mx * my + c1) * (2 * xy + c2) / ((mx**2 + my**2 + c1) * (xx + yy + c2))
    return places.mean((0, 2, 3))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run over ten videos, its recipe and its scores."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "videos").mkdir()
    for number in range(10):
        video(folder / "videos" / f"{number}.mp4", 20, seed=5 * number)
    run, recipe = trained(
        folder,
        "ar_tiny",
        f"data.input={folder / 'videos'}",
        "data.split.test=3",
        "data.split.train=6",
        "generate.samples=2",
    )
    return run, recipe, scores_of(run, recipe)


def test_frames_are_compared_with_the_true_ones(scored):
    run, recipe, scores = scored
    assert (scores["part"], scores["clips"], scores["condition_frames"]) == ("test", 3, 9)
    tokenizer = VideoTokenizer(run.tokenizer, recipe.data.latent_shape)
    for row in scores["per_clip"]:
        truth = read_clip(Path(row["source"]), 17, 32, 64).pixels
        still = truth.copy()
        still[:, 9:] = truth[:, 8:9]
        ceiling = tokenizer.decode(tokenizer.encode(truth[None]))[0].numpy()
        for what, frames in (("repeat", still), ("tokenizer", ceiling)):
            assert row[what]["psnr"] == pytest.approx(np.mean(psnr(frames, truth)[9:]), abs=1e-3)
            assert row[what]["ssim"] == pytest.approx(np.mean(ssim(frames, truth)[9:]), abs=2e-3)
        samples = [
            tokenizer.decode(tokens_of(run, f"{row['clip']:04d}-s{number}"))[0].numpy()
            for number in range(2)
        ]
        expected = np.mean([psnr(frames, truth)[9:] for frames in samples])
        assert row["trained"]["psnr"] == pytest.approx(expected, abs=1e-3)
        for kind, frames in (("truth", truth), ("reconstruction", ceiling)):
            written = shown(getattr(run.evaluation, kind)(row["clip"])).transpose(3, 0, 1, 2)
            assert np.abs(written.astype(float) - frames).mean() < 4
    means = scores["generated"]
    for what in ("trained", "initial", "repeat", "tokenizer"):
        rows = [row[what]["psnr"] for row in scores["per_clip"]]
        assert means[what]["psnr"] == pytest.approx(np.mean(rows))
        assert len(means[what]["psnr_per_frame"]) == 8
    # The given frames are the tokenizer's, whatever continues them, and the true ones if repeated.
    assert means["trained"]["given"] == pytest.approx(means["tokenizer"]["given"])
    assert means["repeat"]["given"]["psnr"] == 100
    assert any(note.startswith("LPIPS is left out") for note in scores["notes"])


def test_tokens_are_predicted_from_the_true_ones(scored):
    run, recipe, scores = scored
    found = scores["teacher_forced"]
    assert found["clips"] == 3
    model = from_published(load_file(run.path / "weights.safetensors"), recipe.model_for_clips())
    documents = {r["document"] for r in run.generated.records()}
    stored = open_documents(str(run.tokens.prefix))
    ids = torch.stack([torch.from_numpy(stored[d].astype(np.int64)) for d in sorted(documents)])
    with torch.no_grad():
        logits = model(ids)[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    top = logits.topk(5).indices == ids[:, 1:, None]
    assert found["trained"]["loss"] == pytest.approx(float(losses.mean()), rel=1e-4)
    assert found["trained"]["top1"] == pytest.approx(float(top[..., 0].float().mean()))
    assert found["trained"]["top5"] == pytest.approx(float(top.any(-1).float().mean()))
    for row in found["trained"]["per_latent_frame"]:
        first = row["frame"] * 8
        own = losses[:, max(0, first - 1) : first + 7]
        assert row["loss"] == pytest.approx(float(own.mean()), rel=1e-4)
    assert [row["frame"] for row in found["trained"]["per_latent_frame"]] == [0, 1, 2]
    # Random weights know nothing.
    assert found["initial"]["loss"] == pytest.approx(math.log(64000), abs=0.1)


def test_scores_as_a_table(scored):
    run, _, scores = scored
    table = run.evaluation.table.read_text()
    for what, words in (("trained", "after post-training"), ("tokenizer", "tokenizer alone")):
        line = next(line for line in table.splitlines() if words in line)
        assert f"{scores['generated'][what]['psnr']:.2f}" in line.split()
    both = render_scores({"one": scores, "other": scores})
    assert "one: after post-training" in both
    assert "other: tokenizer alone" in both


def test_more_steps_or_other_settings_are_scored_anew(scored):
    run, recipe, _ = scored
    further = replace(recipe, train=replace(recipe.train, max_steps=recipe.train.max_steps + 1))
    assert is_done(run, recipe, "generate")
    assert not is_done(run, further, "generate")
    assert not is_done(run, further, "evaluate")
    other = replace(recipe, evaluate=replace(recipe.evaluate, clips=2))
    assert not is_done(run, other, "evaluate")


def test_clips_whose_videos_are_gone_are_named(scored, tmp_path):
    run, recipe, before = scored
    gone = Path(before["per_clip"][0]["source"])
    gone.rename(tmp_path / "moved.mp4")
    try:
        evaluate(run, recipe)
        scores = files.read_json(run.evaluation.metrics)
    finally:
        (tmp_path / "moved.mp4").rename(gone)
    assert scores["clips"] == 2
    assert any(str(gone) in note and "not there" in note for note in scores["notes"])
    assert scores["teacher_forced"] == before["teacher_forced"]


def test_nothing_is_held_out_of_two_videos(tmp_path):
    for number in range(2):
        video(tmp_path / f"{number}.mp4", 20)
    run, recipe = trained(tmp_path, "ar_tiny", f"data.input={tmp_path / '*.mp4'}")
    scores = scores_of(run, recipe)
    assert (scores["clips"], scores["part"]) == (0, None)
    assert scores["notes"] == ["there are no held-out clips: every video was trained on"]
    assert "no clips" in run.evaluation.table.read_text()


def test_texts_are_read(tmp_path):
    rows = []
    for number in range(6):
        video(tmp_path / f"{number}.mp4", 20, seed=number)
        rows.append({"visual_input": f"{number}.mp4", "prompt": f"scene {number}"})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, recipe = trained(tmp_path, "ar_tiny_v2w", f"data.input={tmp_path / 'list.jsonl'}")
    scores = scores_of(run, recipe)
    assert scores["clips"] == 1
    (row,) = scores["per_clip"]
    assert row["prompt"].startswith("scene ")
    assert scores["teacher_forced"]["trained"]["loss"] > 0
    assert len(scores["teacher_forced"]["trained"]["per_latent_frame"]) == 3


def test_robots_are_rolled_out_over_whole_episodes(tmp_path):
    bridge = write_bridge(tmp_path / "bridge", {"train": 4, "val": 3})
    run, recipe = trained(tmp_path, "ar_tiny_action", f"data.input={bridge}")
    scores = scores_of(run, recipe)
    assert (scores["task"], scores["part"], scores["clips"]) == ("action", "validation", 3)
    rows = files.read_jsonl(run.tokens.samples / "clips.jsonl")
    steps = {row["video"]: row["frames"] for row in rows if row["part"] == "validation"}
    frames = read_tensor(run.tokens.samples / FOLDERS["validation"] / "tokenized-frames.pt")
    for record in run.generated.records():
        video_of = record["source"].removeprefix(f"{bridge}/")
        assert record["frames"] == steps[video_of]
        tokens = tokens_of(run, record["key"])
        assert len(tokens) == steps[video_of]
        assert torch.equal(tokens[0], frames[record["first"]])
        truth = ClipFrames(run, recipe).truth(record)
        assert truth.shape[1] == steps[video_of]
    longest = max(steps.values()) - 1
    assert len(scores["generated"]["trained"]["psnr_per_frame"]) == longest
    # Only the second frame of a pair is predicted.
    assert [r["frame"] for r in scores["teacher_forced"]["trained"]["per_latent_frame"]] == [1]
