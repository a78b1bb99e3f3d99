"""The episodes of a LeRobot data set: which there are, and in which files they lie."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from cosmos_hpc.data.lerobot.actions import action_scale
from cosmos_hpc.data.lerobot.info import INFO, LeRobot
from cosmos_hpc.data.parquet import read_columns
from cosmos_hpc.data.parts import part_named
from cosmos_hpc.data.wanted import Note, Row, Wanted
from cosmos_hpc.errors import RequestError

#: Columns of a table of episodes that say where the rows of each lie.
_DATA = ("data/chunk_index", "data/file_index")


def list_episodes(wanted: Wanted, note: Note) -> tuple[str, list[Row]]:
    """The episodes of a data set in the order of their numbers.

    Rows have ``path``, ``video`` (``episode_000012``), ``episode``, ``rate``, ``frames``, ``data``
    (the file with its actions), where they share a file ``start`` and ``end``, where frames are
    pictures in rows ``column``, where there is a description ``prompt``, where ``info.json``
    divides the data set ``part``, and where an episode cannot be used ``error`` and ``reason``.

    Raises:
        RequestError: the data set cannot be read, or has not what is wanted of it.
    """
    source = LeRobot.open(wanted.input)
    camera = source.camera(wanted.camera)
    if wanted.action is not None:
        _check_actions(source, wanted)
    pictures = source.features[camera]["dtype"] == "image"
    found = _second(source, camera) if source.version[0] == 2 else _third(source, camera, pictures)
    episodes = {row["episode"]: row for row in found}
    if not episodes:
        raise RequestError(f"data.input={wanted.input} holds no episode")
    chosen = chosen_episodes(wanted.episodes, episodes)
    rows = []
    parts, left_out = _parts(source), 0
    for number in sorted(chosen):
        row = episodes[number]
        if parts:
            part = next((p for p, first, end in parts if first <= number < end), None)
            if part is None:
                left_out += 1
                continue
            row["part"] = part
        if pictures and "data" in row:
            row.update(path=row["data"], column=camera)
        row.update(_problem(row, wanted))
        rows.append(row)
    if left_out:
        note(f"{left_out} episodes are in none of the splits of {INFO} and are left out")
    if not rows:
        raise RequestError(f"data.input={wanted.input}: none of the episodes is in a split")
    return wanted.input, rows


def _check_actions(source: LeRobot, wanted: Wanted) -> None:
    source.width(str(wanted.action))
    if wanted.frame_rate and wanted.frame_rate > source.rate:
        raise RequestError(
            f"data.frame_rate={wanted.frame_rate:g} is above the {source.rate:g} frames per second "
            f"of {source.folder}; frames that stand still have no action"
        )
    if wanted.normalize_action != "none":
        action_scale(source, str(wanted.action), wanted.normalize_action)


def _problem(row: Row, wanted: Wanted) -> Row:
    """``error`` and ``reason`` of an episode that cannot be used; nothing of one that can."""
    if "error" in row:
        return {}
    start, end, frames = row.get("start", 0.0), row.get("end"), row["frames"]
    if not isinstance(frames, int) or frames < 1:
        return {"error": "annotation", "reason": f"its length is {frames!r}"}
    if end is not None:
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
            row.pop("start"), row.pop("end")
            return {"error": "annotation", "reason": f"it lies from {start} s to {end} s"}
        shown = round((end - start) * row["rate"])
        if shown != frames:
            reason = f"{frames} frames are described, its part of the video takes {shown}"
            return {"error": "length", "reason": reason}
    if wanted.prompts and "prompt" not in row:
        return {"error": "annotation", "reason": "it has no description of its task"}
    return {}


def _second(source: LeRobot, camera: str) -> Iterator[Row]:
    """Episodes of version 2, each with files of its own."""
    size = int(source.info.get("chunks_size") or 1000)
    path = source.folder / "meta" / "episodes.jsonl"
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    said = json.loads(line)
                    episode = int(said["episode_index"])
                    length = said["length"]
                except (ValueError, KeyError, TypeError):
                    raise RequestError(f"{path}, line {number}: it is not an episode") from None
                where = {"episode_chunk": episode // size, "episode_index": episode}
                yield {
                    **_named(episode, source, length, said.get("tasks")),
                    "path": _video(source, camera, **where),
                    "data": source.path("data_path", **where),
                }
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror}") from None


def _third(source: LeRobot, camera: str, pictures: bool) -> Iterator[Row]:
    """Episodes of version 3, which share files."""
    video = [f"videos/{camera}/{k}" for k in ("chunk_index", "file_index")]
    times = [f"videos/{camera}/{k}" for k in ("from_timestamp", "to_timestamp")]
    needed = ["episode_index", "length", *_DATA, *([] if pictures else [*video, *times])]
    paths = sorted(source.folder.glob("meta/episodes/*/*.parquet"))
    if not paths:
        raise RequestError(f"{source.folder} has no meta/episodes/chunk-000/file-000.parquet")
    for path in paths:
        for said in read_columns(path, [*needed, "tasks"], needed):
            row = _named(said["episode_index"], source, said["length"], said.get("tasks"))
            files = [said[key] for key in (*_DATA, *([] if pictures else video))]
            if None in files:
                reason = f"{path.name} does not say in which files it lies"
                yield {**row, "error": "annotation", "reason": reason}
                continue
            row["data"] = source.path("data_path", chunk_index=files[0], file_index=files[1])
            if not pictures:
                row["path"] = _video(source, camera, chunk_index=files[2], file_index=files[3])
                row["start"], row["end"] = (_number(said[key]) for key in times)
            yield row


def _named(episode: int, source: LeRobot, length: Any, tasks: Any) -> Row:
    row: Row = {
        "path": "",
        "video": f"episode_{episode:06d}",
        "episode": episode,
        "rate": source.rate,
        "frames": length,
    }
    texts = [str(text).strip() for text in tasks or [] if str(text).strip()]
    return {**row, "prompt": "; ".join(texts)} if texts else row


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _video(source: LeRobot, camera: str, **where: int) -> str:
    """Path of a camera's video; of one that is stored as pictures there is none."""
    if source.features[camera]["dtype"] == "image":
        return ""
    return source.path("video_path", video_key=camera, **where)


def chosen_episodes(text: str | None, there: dict[int, Any]) -> list[int]:
    """The episodes that a setting such as ``0-9,12`` names; all without one.

    Raises:
        RequestError: it is no such text, or names one that there is not.
    """
    if text is None:
        return list(there)
    chosen: dict[int, None] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise RequestError(f"data.episodes={text}: give numbers and ranges, such as 0-9,12")
        if last > max(there) or first not in there:
            raise RequestError(
                f"data.episodes={text}: there is no episode {last if first in there else first}; "
                f"they are {min(there)} to {max(there)}"
            )
        chosen.update(dict.fromkeys(n for n in range(first, last + 1) if n in there))
    return list(chosen)


def _parts(source: LeRobot) -> list[tuple[str, int, int]]:
    """Parts of a data set that is divided, each with its first episode and the one after it."""
    splits = source.info.get("splits") or {}
    found = []
    for name, text in splits.items():
        part = part_named(name)
        span = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(text))
        if not part or not span:
            raise RequestError(
                f"{source.folder / INFO}: split {name!r} is {text!r}; splits are train, val and "
                f"test, each FIRST:END"
            )
        found.append((part, int(span[1]), int(span[2])))
    return found if len(found) > 1 else []
