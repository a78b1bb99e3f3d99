"""The evaluate stage: scores of a run's weights on held-out clips, beside references."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import Any

import numpy as np

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.completion import subject_of
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.scores import render_scores
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.utils.imports import large_imports, load
from cosmos_hpc.utils.progress import Progress, say
from cosmos_hpc.worker.evaluation.clips import ClipFrames, repeated
from cosmos_hpc.worker.evaluation.frames import FrameScores, Scores
from cosmos_hpc.worker.evaluation.tokens import predict
from cosmos_hpc.worker.generation.items import WeightsName
from cosmos_hpc.worker.generation.sources import HELD_OUT
from cosmos_hpc.worker.generation.weights import open_decoder
from cosmos_hpc.worker.tokenizers.texts import free_memory
from cosmos_hpc.worker.video.problems import VideoError
from cosmos_hpc.worker.video.writer import write_frames

#: Scores of frames, in the order of tables.
_NAMES = ("psnr", "ssim", "lpips")


def evaluate(run: RunFolder, recipe: Recipe, task: int = 0) -> None:
    """Score the weights of a run and its samples; writes JSON, a table and the compared videos.

    Raises:
        WorkError: weights or tokens cannot be read.
    """
    subject = subject_of(run, recipe)
    if subject is None:
        raise WorkError(f"run {run.name} has no trained weights yet: its train stage is not done")
    records = [r for r in run.generated.records() if r["of"] == subject and r["part"]]
    notes: list[str] = []
    part, predicted = _predict(run, recipe, notes)
    by_clip = _compare(run, recipe, records, notes) if records else {}
    metrics = {
        "task": recipe.task,
        "recipe": recipe.name,
        "part": part,
        "clips": len(by_clip),
        "condition_frames": recipe.given_frames,
        "teacher_forced": predicted,
        "generated": _over_clips(by_clip, recipe.given_frames),
        "per_clip": [_of_clip(run, clip, recipe.given_frames) for clip in by_clip.values()],
        "notes": notes,
        "of": subject,
    }
    files.write_json(run.evaluation.metrics, metrics)
    table = render_scores({run.name: metrics})
    files.write_atomic(run.evaluation.table, table + "\n")
    files.write_json(marker_path(run, "evaluate"), {"of": subject, "clips": len(by_clip)})
    say("scores\n" + table)


def _weights(recipe: Recipe) -> list[WeightsName]:
    return ["trained", "initial"] if recipe.generate.initial else ["trained"]


def _predict(
    run: RunFolder, recipe: Recipe, notes: list[str]
) -> tuple[str | None, dict[str, Any] | None]:
    """The held-out part, and how well its tokens are predicted."""
    with large_imports(freeze=True):
        samples_of = load(recipe.kind.training)
    make, counts = samples_of(run, recipe)
    part = next((name for name in HELD_OUT if counts[name]), None)
    if part is None:
        notes.append("there are no held-out clips: every video was trained on")
        return None, None
    count = min(counts[part], recipe.evaluate.clips)
    found: dict[str, Any] = {"clips": count, "initial": None}
    for which in _weights(recipe):
        decoder = open_decoder(run, recipe, which)
        found[which] = predict(decoder, make(part, length=count, once=True), count)
        del decoder
        free_memory()
    return part, found


#: Scores of a clip's frames by what the frames are, and what the record of its sample says.
_Clip = tuple[dict[str, Any], dict[str, Scores]]


def _compare(
    run: RunFolder, recipe: Recipe, records: list[dict[str, Any]], notes: list[str]
) -> dict[int, _Clip]:
    """Scores of the frames of each clip: of its samples, and of what they are compared with."""
    frames, scores = ClipFrames(run, recipe), FrameScores()
    notes += [scores.left_out] if scores.left_out else []
    by_clip: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_clip[record["clip"]].append(record)
    progress = Progress("clips compared", len(by_clip))
    found: dict[int, _Clip] = {}
    for number, (clip, own) in enumerate(sorted(by_clip.items()), 1):
        try:
            truth = frames.truth(own[0])
        except VideoError as e:
            notes.append(f"{own[0]['source']} is left out, its true frames cannot be read: {e}")
            continue
        found[clip] = own[0], _scores_of(run, recipe, frames, scores, own, truth)
        progress.update(number)
    return found


def _scores_of(
    run: RunFolder,
    recipe: Recipe,
    frames: ClipFrames,
    scores: FrameScores,
    records: list[dict[str, Any]],
    truth: np.ndarray,
) -> dict[str, Scores]:
    """Scores of the samples of one clip and of its references, whose videos are written."""
    clip, rate = records[0]["clip"], records[0]["frame_rate"]
    ceiling = frames.reconstructed(truth)
    write_frames(run.evaluation.truth(clip), truth, rate)
    write_frames(run.evaluation.reconstruction(clip), ceiling, rate)
    still = repeated(truth, recipe.given_frames)
    found = {"tokenizer": scores.of(ceiling, truth), "repeat": scores.of(still, truth)}
    for which in ("trained", "initial"):
        keys = [record["key"] for record in records if record["weights"] == which]
        each = [scores.of(frames.generated(key)[:, : truth.shape[1]], truth) for key in keys]
        if each:
            found[which] = _mean_scores(each)
    return found


def _mean_scores(each: list[Scores]) -> Scores:
    """The mean of several samples, frame by frame."""
    return {
        name: [fmean(values) for values in zip(*(one[name] for one in each), strict=True)]
        for name in each[0]
    }


def _over_clips(clips: dict[int, _Clip], given: int) -> dict[str, Any]:
    """Means over clips: of the new frames, of each of them, and of the given ones apart."""
    means: dict[str, Any] = {}
    for what in ("trained", "initial", "tokenizer", "repeat"):
        rows = [scores[what] for _, scores in clips.values() if what in scores]
        if not rows:
            continue
        names = [name for name in _NAMES if name in rows[0]]
        mean: dict[str, Any] = {
            name: fmean(fmean(row[name][given:]) for row in rows) for name in names
        }
        longest = max(len(row["psnr"]) for row in rows)
        for name in names:
            mean[f"{name}_per_frame"] = [
                fmean(row[name][frame] for row in rows if frame < len(row[name]))
                for frame in range(given, longest)
            ]
        mean["given"] = {name: fmean(fmean(row[name][:given]) for row in rows) for name in names}
        means[what] = {"lpips": None, **mean}
    return means


def _of_clip(run: RunFolder, clip: _Clip, given: int) -> dict[str, Any]:
    """The means of one clip's new frames."""
    record, scores = clip
    row = {"clip": record["clip"], "source": record["source"], "prompt": record.get("prompt")}
    for what, own in scores.items():
        row[what] = {name: fmean(values[given:]) for name, values in own.items()}
    return row
