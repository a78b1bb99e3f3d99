"""Tar shards of the WebDataset convention, whose videos are read where they lie.

Files of a sample have one name up to the first dot of its last part: ``0001.mp4`` is the video,
``0001.json`` or ``0001.txt`` say what it shows.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cosmos_hpc.data.lists import EXTENSIONS
from cosmos_hpc.data.videos import matching_files
from cosmos_hpc.data.wanted import Note, Row, Wanted
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import counted

ENDING = ".tar"
#: Keys of a sample's JSON that may hold its prompt, in this order.
PROMPT_KEYS = ("prompt", "caption", "text")
#: A longer text is no description of a video.
_LONGEST_TEXT = 1 << 20


def is_webdataset(source: str) -> bool:
    """Whether a file or pattern names tar shards."""
    return source.endswith(ENDING) and not os.path.isdir(source)  # noqa: PTH112


def list_samples(wanted: Wanted, note: Note) -> tuple[str, list[Row]]:
    """The videos of tar shards, in the order of the shards and of what they hold.

    Of each shard the heads of its members are read, and the texts that go with videos.

    Returns:
        The folder that paths are relative to, and one row per video with ``path`` (the shard),
        ``video`` (``SHARD/NAME``), ``offset`` and ``size``, and where it has one ``prompt``; of a
        shard that cannot be read to its end a row with ``error`` and ``reason``.

    Raises:
        RequestError: there is no such shard, or none of them holds a video.
    """
    root, names, _ = matching_files(wanted.input, (ENDING,))

    def read(name: str) -> list[Row]:
        return list(_samples(root, name))

    with ThreadPoolExecutor(files.THREADS) as pool:
        each = counted(pool.map(read, names), len(names), "shards read", note)
        rows = [row for found in each for row in found]
    if all("error" in row for row in rows):
        why = f"; {rows[0]['path']}: {rows[0]['reason']}" if rows else ""
        raise RequestError(
            f"data.input={wanted.input} holds no video: no member of its {len(names)} shards ends "
            f"in {', '.join(EXTENSIONS)}{why}"
        )
    return root, rows


def _samples(root: str, shard: str) -> Iterator[Row]:
    """The videos of a shard; a member belongs to the sample before it as long as names agree."""
    videos: list[Row] = []
    said: dict[str, str] = {}
    sample: str | None = None
    try:
        with (
            open(os.path.join(root, shard), "rb") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if not member.isreg():
                    continue
                name, dot, kind = _name(member.name)
                if name != sample:
                    yield from _with_prompt(videos, said)
                    videos, said, sample = [], {}, name
                if f"{dot}{kind}".lower().endswith(EXTENSIONS):
                    where = {"offset": member.offset_data, "size": member.size}
                    videos.append({"path": shard, "video": f"{shard}/{member.name}", **where})
                elif kind in ("json", "txt") and member.size <= _LONGEST_TEXT:
                    file.seek(member.offset_data)
                    said[kind] = file.read(member.size).decode("utf-8", "replace")
    except OSError as e:
        reason = e.strerror or str(e)
        yield {"path": shard, "error": "unreadable", "reason": f"it cannot be read: {reason}"}
        return
    except tarfile.TarError as e:
        yield from _with_prompt(videos, said)
        yield {"path": shard, "error": "unreadable", "reason": f"it is not a complete tar: {e}"}
        return
    yield from _with_prompt(videos, said)


def _name(member: str) -> tuple[str, str, str]:
    """Name of a member's sample, and what follows the first dot."""
    folder, name = os.path.split(member)
    first, dot, kind = name.partition(".")
    return os.path.join(folder, first), dot, kind


def _with_prompt(videos: list[Row], said: dict[str, str]) -> Iterator[Row]:
    prompt = _prompt(said)
    for row in videos:
        yield {**row, "prompt": prompt} if prompt else row


def _prompt(said: dict[str, str]) -> str | None:
    try:
        value: Any = json.loads(said["json"]) if "json" in said else {}
    except (ValueError, RecursionError):
        value = {}
    named = [value[key] for key in PROMPT_KEYS if key in value] if isinstance(value, dict) else []
    texts = [text for text in (*named, said.get("txt")) if isinstance(text, str) and text.strip()]
    # A lone surrogate, which JSON can write, is no text.
    return texts[0].strip().encode("utf-8", "replace").decode() if texts else None
