"""What a run generates from: held-out clips after a training, or inputs of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.inputs import PICTURES
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.samples import split_documents
from cosmos_hpc.worker.generation.items import Clip
from cosmos_hpc.worker.video.spans import WHOLE, Span

#: Parts that no training sees, in the order in which they are chosen.
HELD_OUT = ("test", "validation")
#: Of an entry of a list that is a part of a file.
_SECONDS = ("start", "end")


def held_out_part(documents: dict[str, list[int]]) -> str | None:
    """The part to generate from and to score on; None where all that there is was trained on."""
    return next((part for part in HELD_OUT if documents[part]), None)


def held_out_clips(run: RunFolder, recipe: Recipe) -> list[Clip]:
    """Clips of videos that were not trained on, each of another video as long as there are enough.

    The choice follows from the split's seed and the videos' paths.
    """
    pinned = files.read_jsonl(run.data.videos)
    clips = files.iterate_jsonl(run.tokens.clips)
    rows = {row["document"]: {**pinned[row["index"]], **row} for row in clips}
    documents = split_documents(rows.values(), recipe.data.split)
    part = held_out_part(documents)
    chosen = [rows[number] for number in documents[part]] if part else []
    chosen.sort(key=lambda row: (row["clip"], _hash(recipe.data.split.seed, row["video"])))
    root = files.read_json(run.data.shards)["root"]
    return [
        Clip(
            number,
            identity=f"{row['video']}:{row['clip']}:{row.get('prompt', '')}",
            source=os.path.join(root, row["path"]),
            given=recipe.given_frames,
            rate=frame_rate(recipe.data.frames - row["padded"], row["seconds"]),
            record={
                "source_clip": row["clip"],
                "time": row["time"],
                "part": part,
                "prompt": row.get("prompt"),
                "document": row["document"],
                **named_span(row),
            },
        )
        for number, row in enumerate(chosen[: recipe.generate.clips])
    ]


def inputs(run: RunFolder, recipe: Recipe) -> list[Clip]:
    """The pictures and videos that a run without a training was given."""
    root, _, rows = run.data.of_shard(0)
    return [
        Clip(
            number,
            identity=":".join(
                str(row.get(key, "")) for key in ("path", "prompt", "actions", *_SECONDS)
            ).rstrip(":"),
            source=str(root / row["path"]),
            given=1 if row["path"].lower().endswith(PICTURES) else recipe.given_frames,
            record={
                "part": None,
                "prompt": row.get("prompt"),
                **_actions(root, row),
                **named_span(row),
            },
        )
        for number, row in enumerate(rows)
    ]


def named_span(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record for a video that is a part of a file; empty for a complete file."""
    span = Span.of(row)
    if span == WHOLE:
        return {}
    names = {field.name: getattr(span, field.name) for field in dataclasses.fields(span)}
    known = {name: value for name, value in names.items() if value != getattr(WHOLE, name)}
    return {"video_name": row.get("video", row["path"]), "span": known}


def _actions(root: Path, row: dict[str, Any]) -> dict[str, str]:
    return {"actions": str(root / row["actions"])} if "actions" in row else {}


def frame_rate(frames: int, seconds: float) -> float | None:
    """Frames per second of a clip; None where its times say nothing."""
    return round(frames / seconds, 3) if seconds > 0 else None


def _hash(seed: int, video: str) -> bytes:
    return hashlib.sha256(f"{seed}:{video}".encode("utf-8", "surrogateescape")).digest()
