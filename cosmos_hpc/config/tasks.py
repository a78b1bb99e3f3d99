"""What a run prepares: the pinned rows of its input, for each task."""

from __future__ import annotations

from collections.abc import Callable

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data import bridge, videos
from cosmos_hpc.data.lists import Row
from cosmos_hpc.errors import RequestError


def list_rows(recipe: Recipe, note: Callable[[str], None] = videos.ignore) -> tuple[str, list[Row]]:
    """The folder that paths are relative to, and a row a video: ``path`` and what goes with it.

    Rows of task ``video2world`` have a ``prompt``, those of task ``action`` an ``annotation``;
    rows of a folder with parts of its own have a ``part``.

    Args:
        recipe: with its ``data.input``.
        note: is told in a sentence what a person should know of the list.

    Raises:
        RequestError: the input is not there, is not what the task needs, or lacks prompts.
    """
    source = str(recipe.data.input)
    if recipe.task == "action":
        return source, bridge.list_clips(source)
    if recipe.task == "video2world" and bridge.is_bridge(source):
        return source, bridge.list_instructions(source, note)
    root, rows = videos.list_rows(source, note)
    if recipe.task == "video2world":
        _check_prompts(source, rows)
    return root, rows


def _check_prompts(source: str, rows: list[Row]) -> None:
    """Refuse rows without a prompt, which task ``video2world`` cannot learn from."""
    without = [row for row in rows if not str(row.get("prompt") or "").strip()]
    if without:
        raise RequestError(
            f"data.input={source} has {len(without)} of {len(rows)} videos without a prompt, the "
            f"first is {without[0]['path']!r}; task video2world takes a JSONL with prompt and "
            f"visual_input in each line, or a folder in the Bridge layout"
        )
