"""What a run prepares: the pinned rows of its input, for each task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cosmos_hpc import bridge
from cosmos_hpc.errors import RequestError
from cosmos_hpc.recipes import Recipe
from cosmos_hpc.videos import list_videos


def list_rows(recipe: Recipe) -> tuple[str, list[dict[str, Any]]]:
    """The folder that paths are relative to, and a row a video: ``path`` and what goes with it.

    Rows of task ``video2world`` have a ``prompt``, those of task ``action`` an ``annotation``;
    rows of a folder with parts of its own have a ``part``.

    Raises:
        RequestError: the input is not there, is not what the task needs, or lacks prompts.
    """
    source = str(recipe.data.input)
    if recipe.task == "action":
        return source, bridge.list_clips(source)
    if recipe.task == "video2world":
        if bridge.is_bridge(source):
            rows, root = bridge.list_instructions(source), source
        else:
            root, rows = _prompted_videos(source)
        check_prompts(source, rows)
        return root, rows
    return source, [{"path": path} for path in list_videos(source)]


def _prompted_videos(source: str) -> tuple[str, list[dict[str, Any]]]:
    """Rows of a JSONL with ``prompt`` and ``visual_input``, a path relative to the file's folder.

    Raises:
        RequestError: there is no such file, or a line is not what it should be; says which.
    """
    path = Path(source)
    if path.is_dir():
        raise RequestError(
            f"data.input={source} holds videos without prompts; task video2world takes a JSONL "
            f"file with prompt and visual_input a line, or a folder in the Bridge layout"
        )
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise RequestError(f"data.input={source} cannot be read: {e}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as e:
            raise RequestError(f"data.input={source}: line {number} is not JSON: {e}") from None
        video = value.get("visual_input") if isinstance(value, dict) else None
        if not isinstance(video, str) or not video:
            raise RequestError(f"data.input={source}: line {number} has no visual_input")
        rows.append({"path": video, "prompt": value.get("prompt")})
    if not rows:
        raise RequestError(f"data.input={source} lists no video")
    return str(path.parent), rows


def check_prompts(source: str, rows: list[dict[str, Any]]) -> None:
    """Refuse rows without a prompt, which task ``video2world`` cannot learn from.

    Raises:
        RequestError: says how many, and the first.
    """
    without = [row for row in rows if "error" not in row and not _is_prompt(row.get("prompt"))]
    if without:
        raise RequestError(
            f"data.input={source} has {len(without)} of {len(rows)} videos without a prompt, the "
            f"first is {without[0]['path']!r}; task video2world needs one for each"
        )


def _is_prompt(text: Any) -> bool:
    """Whether it is text, and of whole characters: JSON can hold half of one."""
    if not isinstance(text, str) or not text.strip():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
