"""The page: facts, figures and videos put into the templates."""

from __future__ import annotations

import os
from typing import Any

from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.report import Data, Facts, settings_table
from cosmos_hpc.runs.timeline import busy_seconds
from cosmos_hpc.utils.progress import count_of, duration, gigabytes
from cosmos_hpc.worker.report import failures, figures, lanes, videos
from cosmos_hpc.worker.report.templates import ROWS, fill, number
from cosmos_hpc.worker.video.probe import declared_seconds

#: Bytes of the page at most, and those that videos and pictures of failures may take.
LIMIT = 20_000_000
_VIDEOS, _FAILURES = 14_000_000, 1_500_000
#: Examples of each kind of failure, and kinds, with a picture.
_EXAMPLES, _KINDS = 3, 12
#: How attempts end, and what that counts as in the legend.
_SEEN = {"": "unknown", "killed": "failed", "unstarted": "failed", "cancelled": "stopped"}


def render(facts: Facts) -> str:
    """The page of a run, as one file of HTML below :data:`LIMIT` bytes.

    Raises:
        WorkError: it would be larger all the same.
    """
    shown = videos.show(facts.samples, _VIDEOS)
    page = fill(
        "page.html.j2",
        facts=facts,
        clips=shown,
        tiles=_tiles(facts),
        verdict=_verdict(facts),
        plan=_plan(facts.plan),
        settings=settings_table(facts.recipe),
        lanes=lanes.draw(facts.stays),
        attempts=_attempts(facts),
        busy=busy_seconds(facts.stays),
        seen={_SEEN.get(stay.how, stay.how) for stay in facts.stays},
        hosts=list(dict.fromkeys(stay.node for stay in facts.stays if stay.node)),
        scores=_scores(facts.metrics or {}),
        **_training(facts),
        **_data(facts),
        **_numbers(facts),
    )
    if len(page.encode()) > LIMIT:
        raise WorkError(f"the report of run {facts.name} would be larger than {LIMIT} bytes")
    return page


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """Numbers at the top: what, value, and a word to it."""
    found = []
    if not facts.recipe.trains:
        refused = f"{len(facts.refused):,} refused" if facts.refused else "none refused"
        found.append(("samples", f"{len(facts.samples):,}", refused))
    if data := facts.data:
        failed = f"{data.failed:,} failed" if data.failed else "none failed"
        found.append(("videos", f"{data.videos:,}", failed))
        if data.clips is not None:
            found.append(("clips", f"{data.clips:,}", f"{duration(data.seconds)} of video"))
    if training := facts.training:
        losses, validated = training.points("loss"), training.points("validation_loss")
        if losses:
            found.append(("steps", f"{losses[-1][0]:,}", f"of {training.max_steps:,}"))
            found.append(("loss", f"{losses[-1][1]:.3f}", f"from {losses[0][1]:.3f}"))
        if validated:
            step, best = min((loss, step) for step, loss in validated)[::-1]
            found.append(
                ("validation loss", f"{validated[-1][1]:.3f}", f"best {best:.3f}, step {step:,}")
            )
    generated = (facts.metrics or {}).get("generated", {})
    if trained := generated.get("trained"):
        psnr, ssim = number(trained["psnr"]), number(trained["ssim"], 3)
        found.append(("PSNR", f"{psnr} dB", f"SSIM {ssim}"))
    return found


def _verdict(facts: Facts) -> str:
    """The result in a sentence; empty where there is none yet."""
    generated = (facts.metrics or {}).get("generated", {})
    trained = generated.get("trained")
    if not trained or trained["psnr"] is None:
        return ""
    against = [
        f"{generated[name]['psnr']:.1f} dB {words}"
        for name, words in (
            ("initial", "before the training"),
            ("repeat", "for the last given frame repeated"),
            ("tokenizer", "for the tokenizer alone, about the best that a model can reach"),
        )
        if (generated.get(name) or {}).get("psnr") is not None
    ]
    if not against:
        return f"What the post-trained model generates is at {trained['psnr']:.1f} dB PSNR."
    return (
        f"What the post-trained model generates is at {trained['psnr']:.1f} dB PSNR to the true "
        f"frames, against {_listed(against)}."
    )


def _listed(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _plan(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """The plan, as rows of a table; what an older version did not note is left out."""
    layout, rows = plan.get("layout") or {}, []
    if plan.get("parameters"):
        rows.append(("model", f"{plan['parameters'] / 1e6:,.1f} M parameters"))
    if plan.get("latent_shape"):
        clip = "x".join(map(str, plan["latent_shape"]))
        rows.append(("clip", f"{clip} tokens, {plan.get('sequence_length'):,} inputs of the model"))
    if plan.get("ranks"):
        gpu = plan.get("gpu")
        count = plan["ranks"]
        place = f"{count} {gpu}" if gpu else f"processors, {count_of(count, 'rank')}"
        rows.append(("trained on", place))
    if layout:
        words = [f"tensor parallel {layout.get('tensor_parallel')}"]
        if layout.get("context_parallel", 1) > 1:
            words.append(f"context parallel {layout['context_parallel']}")
        words += [f"data parallel {layout.get('data_parallel')}"]
        words += ["sequence parallel"] if layout.get("sequence_parallel") else []
        words += [f"recomputation: {layout.get('recompute')}", str(layout.get("precision"))]
        rows.append(("layout", ", ".join(words)))
    if plan.get("memory"):
        total = sum(plan["memory"].values())
        rows.append(("memory", f"{total / 1e9:.1f} GB on each GPU, estimated"))
    if plan.get("disk_bytes"):
        rows.append(("disk", f"up to {gigabytes(plan['disk_bytes'])}, estimated"))
    return rows


def _attempts(facts: Facts) -> list[Any]:
    """Attempts for the table: those that went wrong first where there are too many."""
    stays = facts.stays
    if len(stays) > ROWS:
        stays = sorted(stays, key=lambda stay: stay.how == "done")[:ROWS]
    return sorted(stays, key=lambda stay: stay.started)


def _training(facts: Facts) -> dict[str, Any]:
    training = facts.training
    if training is None:
        return {"training_figures": [], "broken_losses": 0}
    drawn = [figures.losses(training), figures.step_seconds(training)]
    return {
        "training_figures": [figure for figure in drawn if figure],
        "broken_losses": sum(loss != loss for _, loss in training.points("loss")),
    }


def _data(facts: Facts) -> dict[str, Any]:
    data = facts.data
    if data is None:
        return {"data_figures": [], "failure_pictures": {}, "unreachable": False}
    seconds = [length for length in declared_seconds(data.sample) if length]
    # A frame that is taken alone has no length.
    clip = data.seconds / data.clips if data.clips and facts.recipe.data.frames > 1 else None
    drawn = figures.lengths(seconds, data.videos, clip)
    return {
        "data_figures": [drawn] if drawn else [],
        "failure_pictures": _pictures(data),
        "unreachable": not seconds,
    }


def _pictures(data: Data) -> dict[str, str]:
    """Pictures of the failed videos that are shown as examples, by the name of the video."""
    videos = [
        example["video"]
        for kind in data.failures[:_KINDS]
        if kind.kind not in failures.NOT_OPENED
        for example in kind.examples[:_EXAMPLES]
    ]
    paths = {os.path.join(data.root, video): video for video in videos}
    found, left = {}, _FAILURES
    for path, picture in failures.pictures(list(paths)).items():
        left -= len(picture)
        if left >= 0:
            found[paths[path]] = picture
    return found


def _scores(metrics: dict[str, Any]) -> dict[tuple[int, str], dict[str, float]]:
    """PSNR and SSIM by the number of a clip and whose video it is."""
    return {
        (row["clip"], name): row[name]
        for row in metrics.get("per_clip") or []
        for name in ("trained", "initial", "tokenizer")
        if row.get(name)
    }


def _numbers(facts: Facts) -> dict[str, Any]:
    metrics = facts.metrics
    if metrics is None:
        return {"number_figures": [], "frame": "frame", "clip": "clip"}
    action = metrics.get("task") == "action"
    frame = "step of the rollout" if action else "frame"
    drawn = [
        figures.per_frame(metrics, "psnr", "dB", frame),
        figures.per_frame(metrics, "ssim", "", frame),
        figures.per_latent_frame(metrics.get("teacher_forced") or {}),
    ]
    return {
        "number_figures": [figure for figure in drawn if figure],
        "frame": frame,
        "clip": "episode" if action else "clip",
    }
