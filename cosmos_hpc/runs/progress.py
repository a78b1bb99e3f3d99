"""How far a stage is, in words, from what it has written so far.

Each function takes the run and the markers of the stage's tasks, and returns an empty text where
there is nothing to say.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cosmos_hpc.data.shards import read_marker
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import duration


def nothing(run: RunFolder, markers: Sequence[Path]) -> str:
    """For stages that are done or not."""
    return ""


def no_results(run: RunFolder, marker: Path) -> dict[str, Path]:
    """For stages that make nothing for people."""
    return {}


def train_results(run: RunFolder, marker: Path) -> dict[str, Path]:
    """The last checkpoint and the picture of the losses."""
    checkpoint = run.path / files.read_json(marker)["checkpoint"]
    return {"checkpoint": checkpoint, "loss curve": run.train.loss_curve}


def report_results(run: RunFolder, marker: Path) -> dict[str, Path]:
    """The page."""
    return {"report": run.path / files.read_json(marker)["page"]}


def preprocess(run: RunFolder, markers: Sequence[Path]) -> str:
    """Videos of all shards, and what became of some."""
    videos = failed = padded = 0
    for shard, path in enumerate(markers):
        marker = read_marker(path.parent)
        if marker:
            videos += marker.videos
            failed += marker.failed
            padded += marker.padded
        else:
            rows = files.read_jsonl(run.tokens.journal(shard))
            videos += sum(bool(row.get("last")) for row in rows)
            failed += sum("error" in row for row in rows)
            padded += sum(bool(row.get("padded")) for row in rows)
    notes = [f"{failed} failed"] if failed else []
    notes += [f"{padded} shorter than a clip, last frame repeated"] if padded else []
    return ", ".join([f"{videos}/{run.data.num_videos()} videos", *notes])


def finalize(run: RunFolder, markers: Sequence[Path]) -> str:
    """Clips, once they are counted."""
    marker = files.read_json(markers[0])
    return f"{marker['clips']} clips of {marker['videos']} videos" if marker else ""


def train(run: RunFolder, markers: Sequence[Path]) -> str:
    """Steps, losses and the time that is left."""
    rows = _last_rows(run.train.metrics)
    steps = [row for row in rows if "loss" in row]
    if not steps:
        return ""
    last = steps[-1]
    total = files.read_json(run.spec("train"))["recipe"]["train"]["max_steps"]
    text = f"step {last['step']}/{total}, loss {last['loss']:.3f}"
    validated = [row for row in rows if "validation_loss" in row]
    if validated:
        text += f", validation loss {validated[-1]['validation_loss']:.3f}"
        if last["step"] == total != validated[-1]["step"]:
            text += f" at step {validated[-1]['step']}"
    if last["step"] < total:
        # The median: a step beside a checkpoint takes longer.
        seconds = statistics.median(row["seconds"] for row in steps[-20:])
        left = duration((total - last["step"]) * seconds)
        text += f", {seconds:.2f} s/step, {left} left"
    return text


def _last_rows(path: Path, tail: int = 1 << 16) -> list[dict[str, Any]]:
    """The whole rows at the end of a file, which may be long."""
    if not path.exists():
        return []
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - tail))
        lines = f.read().splitlines(keepends=True)
    rows = []
    for line in lines:
        # Cut at the beginning of the tail, or being written: not whole.
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
