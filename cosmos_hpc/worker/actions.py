"""Robot clips as the files that NVIDIA's guide trains action control on.

Every frame of a clip is tokenized on its own. The files of a part hold its clips one after another,
a row a frame; the action of a clip's last frame is a row of NaN, so that no pair of frames crosses
from one clip to the next.
"""

from __future__ import annotations

import json
import math
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
from cosmos_hpc.shards import publish_shard
from cosmos_hpc.worker.dataset import FOLDERS, split_documents
from cosmos_hpc.worker.documents import open_documents
from cosmos_hpc.worker.download import tokenizer_folder
from cosmos_hpc.worker.journal import ID_DTYPE, Journal
from cosmos_hpc.worker.tokenizer import VideoTokenizer
from cosmos_hpc.worker.video import VideoError, read_clip

#: Of a part: a row a frame in each.
FILES = ("tokenized-frames.pt", "actions.pt", "state.pt", "gripper.pt")

T = TypeVar("T")
R = TypeVar("R")


def preprocess_actions(run: RunFolder, recipe: Recipe, shard: int) -> None:
    """Prepare a shard of robot clips and publish it whole; finished clips are kept.

    A shard has the form of every other: a document a frame, and in its table a row a clip of T
    frames, with T rows each of ``action`` (the last is null), ``state`` and ``gripper``.

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
    tokenizer = VideoTokenizer(
        tokenizer_folder(run), recipe.data.latent_shape, device, recipe.data.batch_size
    )
    clock.lap("load")
    progress = Progress(f"shard {shard}: clips", len(rows), done)
    failed = sum("error" in row for row in journal.rows)

    def read(row: dict[str, Any]) -> tuple[Tensor, dict[str, Any]] | Exception:
        try:
            return read_robot_clip(root, row, recipe)
        except (VideoError, AnnotationError) as e:
            return e

    # As many as this task has cores, also where several share a machine.
    for number, result in enumerate(_ahead(read, rows[done:], torch.get_num_threads()), done):
        clock.lap("wait for frames")
        row = {"index": first + number, "video": rows[number]["path"], "last": True}
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
        if run.stop_requested():
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
    """All frames of a clip, uint8 ``[3, T, H, W]``, and what is to be said of them.

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
    robot["action"].append(None)
    said = {"seconds": round(clip.seconds, 6), "padded": 0, "rotated": clip.rotated}
    return torch.as_tensor(clip.pixels)[:, :frames], {**said, **robot}


def _tokenize(tokenizer: VideoTokenizer, pixels: Tensor, data: Data) -> np.ndarray:
    """Ids ``[T, ids of a frame]`` of frames ``[3, T, H, W]``, each tokenized on its own."""
    frames = pixels.transpose(0, 1)[:, :, None]
    batches = [tokenizer.encode(batch).flatten(1) for batch in frames.split(data.batch_size)]
    ids: np.ndarray = torch.cat(batches).numpy()
    return ids


def _publish(
    run: RunFolder, recipe: Recipe, shard: int, journal: Journal, clock: Stopwatch
) -> None:
    from cosmos_hpc.worker.preprocess import write_documents  # which imports this module

    final = run.shard(shard)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    rows = [{k: v for k, v in row.items() if k not in ("crc", "last")} for row in journal.rows]
    good = [row for row in rows if "error" not in row]
    failed = [row for row in rows if "error" in row]
    ids = np.fromfile(journal.ids_path, ID_DTYPE).reshape(-1, recipe.data.ids_per_clip)
    write_documents(temporary / "tokens", ids)
    files.write_jsonl(temporary / "clips.jsonl", good)
    files.write_jsonl(temporary / "failed.jsonl", failed)
    clock.lap("write")
    marker = {
        "shard": shard,
        "videos": len(rows),
        "clips": len(ids),
        "failed": len(failed),
        "padded": 0,
        "ids_per_clip": recipe.data.ids_per_clip,
        "sha256": {p.name: files.sha256(p) for p in sorted(temporary.iterdir())},
        "seconds": {k: round(v, 3) for k, v in clock.seconds.items()},
    }
    publish_shard(temporary, final, marker, run.marker("finalize"))
    say(f"shard {shard} is whole: {len(good)} clips of {len(ids)} frames, {len(failed)} failed")


def write_robot_files(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Write a run's joined frames and what goes with them as a folder a part.

    Returns:
        What the stage's marker says of them.
    """
    pinned = files.read_jsonl(run.videos)
    clips: list[dict[str, Any]] = []
    for row in _lines(run.clips):
        if row["clip"] == 0:
            own = {k: v for k, v in pinned[row["index"]].items() if k == "part"}
            clips.append({"document": len(clips), "video": row["video"], "frames": 0, **own})
        clips[-1]["frames"] += 1
    parts = split_documents(clips, recipe.data.split)
    for part, chosen in parts.items():
        first = 0
        for number in chosen:
            clips[number].update(part=part, first=first)
            first += clips[number]["frames"]

    final = run.samples
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for part, chosen in parts.items():
        if chosen:
            folder = temporary / FOLDERS[part]
            folder.mkdir(parents=True)
            _write_part(run, recipe, clips, part, folder)
    for clip in clips:
        del clip["document"]
    files.write_jsonl(temporary / "clips.jsonl", clips)
    written = sorted(p for p in temporary.rglob("*") if p.is_file())
    sums = {f"samples/{p.relative_to(temporary)}": files.sha256(p) for p in written}
    files.publish(temporary, final)
    pairs = {
        FOLDERS[part]: sum(clips[number]["frames"] - 1 for number in chosen)
        for part, chosen in parts.items()
    }
    return {"pairs": pairs, "sha256": sums}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a table that may be long."""
    with open(path, "rb") as f:
        yield from map(json.loads, f)


def _write_part(
    run: RunFolder, recipe: Recipe, clips: list[dict[str, Any]], part: str, folder: Path
) -> None:
    total = sum(clip["frames"] for clip in clips if clip["part"] == part)
    width = recipe.model.action_width
    assert width is not None
    frames = torch.empty(total, *recipe.data.latent_shape, dtype=torch.int32)
    actions, state = torch.full((total, width), math.nan), torch.empty(total, width)
    gripper = torch.empty(total)
    ids = open_documents(str(run.token_prefix))
    number, at = -1, 0
    for row in _lines(run.clips):
        number += row["clip"] == 0
        if clips[number]["part"] != part:
            continue
        frame = torch.from_numpy(ids[row["document"]].astype(np.int32))
        frames[at] = frame.view(recipe.data.latent_shape)
        if row["action"] is not None:
            actions[at] = torch.tensor(row["action"])
        state[at], gripper[at] = torch.tensor(row["state"]), row["gripper"]
        at += 1
    for name, tensor in zip(FILES, (frames, actions, state, gripper), strict=True):
        torch.save(tensor, folder / name)
