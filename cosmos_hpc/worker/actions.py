"""Robot clips as the files that NVIDIA's guide trains action control on.

Every frame of a clip is tokenized on its own. The files of a part hold its clips one after another,
a row a frame; the action of a clip's last frame is a row of NaN, so that no pair of frames crosses
from one clip to the next.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cosmos_hpc import files
from cosmos_hpc.bridge import AnnotationError, movements, read_annotation
from cosmos_hpc.errors import Stopped, WorkError
from cosmos_hpc.progress import Progress, Stopwatch, say
from cosmos_hpc.recipes import Data, Recipe
from cosmos_hpc.runs import RunFolder, shard_rows
from cosmos_hpc.worker.conditioned import read_tensor
from cosmos_hpc.worker.dataset import FOLDERS, split_documents
from cosmos_hpc.worker.download import tokenizer_folder
from cosmos_hpc.worker.journal import Journal
from cosmos_hpc.worker.tokenizer import VideoTokenizer
from cosmos_hpc.worker.video import VideoError, read_clip

#: Of a part or a shard: a row a frame in each.
FILES = ("tokenized-frames.pt", "actions.pt", "state.pt", "gripper.pt")

T = TypeVar("T")
R = TypeVar("R")


def preprocess_actions(run: RunFolder, recipe: Recipe, shard: int) -> None:
    """Prepare a shard of robot clips and publish it whole; finished clips are kept.

    Raises:
        WorkError: the input is gone, or the tokenizer is or does not fit the recipe.
        Stopped: on request, after a clip.
    """
    clock = Stopwatch()
    with Journal(run.journal(shard), recipe.data.ids_per_clip) as journal:
        _fill(run, recipe, shard, journal, clock)
        _publish(run, recipe, shard, journal, clock)
    journal.remove()


def _fill(run: RunFolder, recipe: Recipe, shard: int, journal: Journal, clock: Stopwatch) -> None:
    pinned = files.read_json(run.shards)
    root, first = Path(pinned["root"]), pinned["bounds"][shard]
    if not root.is_dir():
        # Every clip would count as gone, for good.
        raise WorkError(f"data.input={root} is not there; is its file system mounted?")
    rows, done = shard_rows(run, shard), len(journal.rows)
    if done:
        say(f"shard {shard}: {done} of {len(rows)} clips were finished before")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = VideoTokenizer(tokenizer_folder(run), recipe.data.latent_shape, device)
    clock.lap("load")
    progress = Progress(f"shard {shard}: clips", len(rows), done)
    failed = sum("error" in row for row in journal.rows)

    def read(row: dict[str, Any]) -> tuple[Tensor, dict[str, Any]] | Exception:
        try:
            return read_robot_clip(root, row, recipe)
        except (VideoError, AnnotationError) as e:
            return e

    threads = len(os.sched_getaffinity(0))
    for number, result in enumerate(_ahead(read, rows[done:], threads), done):
        clock.lap("wait for frames")
        row = {"index": first + number, "video": rows[number]["path"]}
        if isinstance(result, VideoError | AnnotationError):
            failed += 1
            say(f"failed: {row['video']!r}: {result}")
            ids = np.empty((0, recipe.data.ids_per_clip), np.int64)
            journal.append([({**row, "error": result.kind, "reason": str(result)}, ids)])
        elif isinstance(result, Exception):
            raise result
        else:
            ids = _tokenize(tokenizer, result[0], recipe.data)
            journal.append([({**row, **result[1]}, ids)])
        clock.lap("tokenize")
        if run.stop_request.exists():
            raise Stopped(f"stopped after {number + 1} of {len(rows)} clips")
        progress.update(number + 1, f"{failed} failed" if failed else "")


def _ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """``map`` in order, with so many threads that work on the items ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_robot_clip(
    root: Path, row: dict[str, Any], recipe: Recipe
) -> tuple[Tensor, dict[str, Any]]:
    """All frames of a clip, uint8 ``[3, T, H, W]``, and what the robot did in it.

    Raises:
        AnnotationError, VideoError: the clip cannot be used, or its video has not the frames that
            its actions go with.
    """
    width = recipe.model.action_width
    assert width is not None
    robot = movements(read_annotation(root / row["annotation"]), width)
    frames = len(robot["state"])
    # One more than there should be, which is then a repetition of the last.
    clip = read_clip(root / row["path"], frames + 1, recipe.data.height, recipe.data.width)
    if clip.padded != 1:
        found = f"{frames + 1 - clip.padded}" if clip.padded else f"more than {frames}"
        raise AnnotationError(
            "actions", f"{frames - 1} actions go with {frames} frames, and the video has {found}"
        )
    return clip.pixels[:, :frames], robot


def _tokenize(tokenizer: VideoTokenizer, pixels: Tensor, data: Data) -> np.ndarray:
    """Ids ``[T, ids of a frame]`` of frames ``[3, T, H, W]``, each tokenized on its own."""
    frames = pixels.transpose(0, 1)[:, :, None]
    batches = [tokenizer.encode(batch).flatten(1) for batch in frames.split(data.batch_size)]
    ids: np.ndarray = torch.cat(batches).numpy()
    return ids


def _publish(
    run: RunFolder, recipe: Recipe, shard: int, journal: Journal, clock: Stopwatch
) -> None:
    final = run.shard(shard)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    good = [row for row in journal.rows if "error" not in row]
    failed = [row for row in journal.rows if "error" in row]
    shape = recipe.data.latent_shape
    width = recipe.model.action_width
    assert width is not None
    ids = torch.from_numpy(journal.ids().astype(np.int32)).view(-1, *shape)
    end = [[math.nan] * width]
    tensors = (
        ids,
        _rows([row for clip in good for row in clip["action"] + end], width),
        _rows([row for clip in good for row in clip["state"]], width),
        torch.tensor([x for clip in good for x in clip["gripper"]], dtype=torch.float32),
    )
    for name, tensor in zip(FILES, tensors, strict=True):
        torch.save(tensor, temporary / name)
    files.write_jsonl(temporary / "clips.jsonl", [_table_row(row) for row in good])
    kept = ("index", "video", "error", "reason")
    files.write_jsonl(temporary / "failed.jsonl", [{k: row[k] for k in kept} for row in failed])
    clock.lap("write")
    marker = {
        "shard": shard,
        "videos": len(journal.rows),
        "clips": len(good),
        "frames": len(ids),
        "failed": len(failed),
        "padded": 0,
        "sha256": {p.name: files.sha256(p) for p in sorted(temporary.iterdir())},
        "seconds": {k: round(v, 3) for k, v in clock.seconds.items()},
    }
    files.write_json(temporary / "done.json", marker)
    files.publish(temporary, final)
    say(f"shard {shard} is whole: {marker['clips']} clips, {marker['failed']} failed")


def _rows(rows: list[list[float]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).view(-1, width)


def _table_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"index": row["index"], "video": row["video"], "frames": row["clips"]}


def join_actions(run: RunFolder, recipe: Recipe, shards: list[Path]) -> dict[str, Any]:
    """Join the shards into a folder a part, with a table of the clips.

    Returns:
        What the stage's marker says of them.
    """
    pinned = files.read_jsonl(run.videos)
    clips: list[dict[str, Any]] = []
    # Where the frames of each clip are: the shard, and their first row in its files.
    places: list[tuple[int, int]] = []
    for number, shard in enumerate(shards):
        start = 0
        for row in files.read_jsonl(shard / "clips.jsonl"):
            own = {k: v for k, v in pinned[row["index"]].items() if k == "part"}
            clips.append({"document": len(clips), **row, **own})
            places.append((number, start))
            start += row["frames"]
    parts = split_documents(clips, recipe.data.split)
    final = run.samples
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for part, chosen in parts.items():
        if not chosen:
            continue
        folder = temporary / FOLDERS[part]
        folder.mkdir(parents=True)
        first = 0
        for clip in chosen:
            clips[clip].update(part=part, first=first)
            first += clips[clip]["frames"]
        for name in FILES:
            # Of one kind at a time: the ids of a large data set take gigabytes.
            spans = [(*places[clip], clips[clip]["frames"]) for clip in chosen]
            torch.save(_gather(shards, name, spans, first), folder / name)
    written = sorted(p.relative_to(temporary) for p in temporary.rglob("*.pt"))
    sums = {f"samples/{path}": files.sha256(temporary / path) for path in written}
    files.publish(temporary, final)
    files.write_jsonl(run.clips, clips)
    return {
        "clips": len(clips),
        "padded": 0,
        "frames": sum(clip["frames"] for clip in clips),
        "pairs": {
            part: sum(clips[clip]["frames"] - 1 for clip in chosen)
            for part, chosen in parts.items()
        },
        "sha256": {**sums, run.clips.name: files.sha256(run.clips)},
    }


def _gather(shards: list[Path], name: str, spans: list[tuple[int, int, int]], total: int) -> Tensor:
    """Rows of the shards' files one after another: of each span the shard, the first and number."""
    joined: Tensor | None = None
    opened, tensor, filled = -1, torch.empty(0), 0
    for shard, start, count in spans:
        if shard != opened:
            opened, tensor = shard, read_tensor(shards[shard] / name, mmap=True)
        if joined is None:
            joined = torch.empty(total, *tensor.shape[1:], dtype=tensor.dtype)
        joined[filled : filled + count] = tensor[start : start + count]
        filled += count
    assert joined is not None
    return joined
