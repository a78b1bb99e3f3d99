"""The preprocess stage: one shard of videos becomes ids in Megatron's indexed format."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from cosmos_hpc import files
from cosmos_hpc.errors import Stopped, WorkError
from cosmos_hpc.progress import Progress, Stopwatch, say
from cosmos_hpc.recipes import Data, Recipe
from cosmos_hpc.runs import RunFolder, shard_rows, shard_videos
from cosmos_hpc.shards import write_marker
from cosmos_hpc.worker.download import tokenizer_folder
from cosmos_hpc.worker.journal import ID_DTYPE, Journal
from cosmos_hpc.worker.tokenizer import VideoTokenizer
from cosmos_hpc.worker.video import Clip, VideoError, read_clip


def preprocess(run: RunFolder, recipe: Recipe, shard: int) -> None:
    """Prepare a shard and publish it whole; finished clips of an earlier attempt are kept.

    Raises:
        WorkError: the input is gone, or the tokenizer is or does not fit the recipe.
    """
    if recipe.task == "action":
        from cosmos_hpc.worker.actions import preprocess_actions

        return preprocess_actions(run, recipe, shard)
    if recipe.task == "video2world":
        from cosmos_hpc.worker.texts import encode_prompts

        # First, and its model gone from memory before the tokenizer comes.
        encode_prompts(run, recipe, shard)
    clock = Stopwatch()
    with Journal(run.journal(shard), recipe.data.ids_per_clip) as journal:
        _fill(run, recipe, shard, journal, clock)
        _publish(run, shard, journal, clock)
    journal.remove()


def _fill(run: RunFolder, recipe: Recipe, shard: int, journal: Journal, clock: Stopwatch) -> None:
    root, first, videos = shard_videos(run, shard)
    refused = {row["path"]: row for row in shard_rows(run, shard) if "error" in row}
    if not root.is_dir():
        # Every video would count as gone, for good.
        raise WorkError(f"data.input={root} is not there; is its file system mounted?")
    done = len(journal.rows)
    if done:
        say(f"shard {shard}: {done} of {len(videos)} videos were finished before")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = VideoTokenizer(tokenizer_folder(run), recipe.data.latent_shape, device)
    clock.lap("load")
    progress = Progress(f"shard {shard}: videos", len(videos), done)
    failed = sum("error" in row for row in journal.rows)
    for start in range(done, len(videos), recipe.data.batch_size):
        batch = videos[start : start + recipe.data.batch_size]
        rows = list(_encode(root, first + start, batch, recipe.data, tokenizer, clock, refused))
        journal.append(rows)
        clock.lap("write")
        if run.stop_requested():
            raise Stopped(f"stopped after {start + len(batch)} of {len(videos)} videos")
        for row, _ in rows:
            if "error" in row:
                failed += 1
                say(f"failed: {row['video']!r}: {row['reason']}")
        progress.update(start + len(batch), f"{failed} failed" if failed else "")


def _encode(
    root: Path,
    index: int,
    videos: list[str],
    data: Data,
    tokenizer: VideoTokenizer,
    clock: Stopwatch,
    refused: dict[str, dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """What is to be said of each video, and the ids of its clips, in the order of the videos."""
    read: list[Clip | VideoError] = []
    for video in videos:
        if video in refused:
            # Already when the input was listed, for what goes with it.
            read.append(VideoError(refused[video]["error"], refused[video]["reason"]))
            continue
        try:
            pad = data.short_videos == "pad"
            clip = read_clip(root / video, data.frames, data.height, data.width, pad, clock)
            read.append(clip)
        except VideoError as e:
            read.append(e)
    good = [clip.pixels for clip in read if isinstance(clip, Clip)]
    encoded = iter(tokenizer.encode(torch.stack(good)).flatten(1).numpy() if good else ())
    clock.lap("tokenize")
    nothing = np.empty((0, data.ids_per_clip), ID_DTYPE)
    for offset, (video, result) in enumerate(zip(videos, read, strict=True)):
        row: dict[str, Any] = {"index": index + offset, "video": video}
        if isinstance(result, VideoError):
            yield {**row, "error": result.kind, "reason": str(result)}, nothing
        else:
            row.update(seconds=round(result.seconds, 6), padded=result.padded)
            row.update(rotated=result.rotated)
            yield row, next(encoded)[None]


def _publish(run: RunFolder, shard: int, journal: Journal, clock: Stopwatch) -> None:
    final = run.shard(shard)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    good = [row for row in journal.rows if "error" not in row]
    failed = [row for row in journal.rows if "error" in row]
    write_documents(temporary / "tokens", journal.ids())
    files.write_jsonl(temporary / "clips.jsonl", [_without_crc(row) for row in good])
    files.write_jsonl(temporary / "failed.jsonl", [_without_crc(row) for row in failed])
    clock.lap("write")
    marker = {
        "shard": shard,
        "videos": len(journal.rows),
        "clips": sum(row["clips"] for row in good),
        "failed": len(failed),
        "padded": sum(bool(row["padded"]) for row in good),
        "ids_per_clip": journal.ids_per_clip,
        "sha256": {p.name: files.sha256(p) for p in sorted(temporary.iterdir())},
        "seconds": {k: round(v, 3) for k, v in clock.seconds.items()},
    }
    write_marker(temporary, marker)
    files.publish(temporary, final)
    say(f"shard {shard} is whole: {marker['clips']} clips, {marker['failed']} videos failed")


def _without_crc(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "crc"}


def write_documents(prefix: Path, clips: np.ndarray) -> None:
    """Write ``PREFIX.bin`` and ``PREFIX.idx``, one document a row of ``clips``."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=ID_DTYPE)
    for clip in clips:
        builder.add_item(torch.from_numpy(clip.astype(np.int64)))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
