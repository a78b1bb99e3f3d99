"""What ``data.input`` may be: one table, the first that fits counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from cosmos_hpc.data import bridge, videos
from cosmos_hpc.data.lerobot import actions as lerobot_actions
from cosmos_hpc.data.lerobot.episodes import list_episodes
from cosmos_hpc.data.lerobot.info import LeRobot, is_lerobot
from cosmos_hpc.data.wanted import Note, Row, Wanted
from cosmos_hpc.data.webdataset import is_webdataset, list_samples
from cosmos_hpc.errors import RequestError

#: What a robot did in a clip: root, row, name of the feature of actions, and their width.
Movements = Callable[[Path, Row, str, int], dict[str, list[Any]]]


class Source(Struct, frozen=True):
    """A kind of input.

    Attributes:
        name: in words.
        is_it: whether a folder, file or pattern is one.
        rows: the folder that paths are relative to, and one row per video; raises a RequestError.
        settings: of the recipe's data that only some kinds of input understand, and this one does.
        action_width: numbers of an action; None: a kind without actions.
        one_width: whether the source itself says so for all of its clips.
        movements: of a clip, every number checked; raises a
            :class:`~cosmos_hpc.data.bridge.AnnotationError`.
        action_scale: how actions are made alike, as
            :func:`cosmos_hpc.data.lerobot.actions.action_scale` says it; None: not at all.
    """

    name: str
    is_it: Callable[[str], bool]
    rows: Callable[[Wanted, Note], tuple[str, list[Row]]]
    settings: tuple[str, ...] = ()
    action_width: Callable[[Wanted], int] | None = None
    one_width: bool = False
    movements: Movements | None = None
    action_scale: Callable[[Path, str, str], dict[str, Any]] | None = None


def _bridge_rows(wanted: Wanted, note: Note) -> tuple[str, list[Row]]:
    if wanted.action is not None:
        if wanted.frame_rate is not None:
            raise RequestError(
                "data.frame_rate does not go with the actions of the Bridge layout, which says "
                "nothing of their rate"
            )
        return wanted.input, bridge.list_clips(wanted.input)
    if wanted.prompts:
        return wanted.input, bridge.list_instructions(wanted.input, note)
    return videos.list_video_files(wanted.input, note, wanted.by_content)


def _lerobot_movements(root: Path, row: Row, action: str, width: int) -> dict[str, list[Any]]:
    return lerobot_actions.movements(LeRobot.open(root), row, action, width)


SOURCES = (
    Source(
        "a LeRobot data set",
        is_it=is_lerobot,
        rows=list_episodes,
        settings=("camera", "episodes", "action", "normalize_action"),
        action_width=lambda wanted: LeRobot.open(wanted.input).width(str(wanted.action)),
        one_width=True,
        movements=_lerobot_movements,
        action_scale=lambda root, name, how: lerobot_actions.action_scale(
            LeRobot.open(root), name, how
        ),
    ),
    Source(
        "a folder in the Bridge layout",
        is_it=bridge.is_bridge,
        rows=_bridge_rows,
        action_width=lambda wanted: bridge.action_width(wanted.input),
        movements=lambda root, row, _, width: bridge.movements(
            bridge.read_annotation(root / row["annotation"]), width
        ),
    ),
    Source("a WebDataset", is_it=is_webdataset, rows=list_samples),
    Source(
        "videos",
        is_it=lambda source: True,
        rows=lambda wanted, note: videos.list_video_files(wanted.input, note, wanted.by_content),
    ),
)


def source_of(text: str) -> Source:
    """The kind of an input."""
    return next(source for source in SOURCES if source.is_it(text))


def list_source(wanted: Wanted, note: Note) -> tuple[str, list[Row]]:
    """The videos of an input, in an order that every run repeats.

    Raises:
        RequestError: it is not there, cannot be read, or has not what is wanted of it.
    """
    source = source_of(wanted.input)
    if wanted.action is not None:
        source = with_actions(wanted.input)
    usual = Wanted("", action=wanted.action and "action")
    for name in ("camera", "episodes", "action", "normalize_action"):
        if name not in source.settings and getattr(wanted, name) != getattr(usual, name):
            takers = " or ".join(other.name for other in SOURCES if name in other.settings)
            raise RequestError(
                f"data.{name}={getattr(wanted, name)} goes with {takers}, and "
                f"data.input={wanted.input} is {source.name}"
            )
    return source.rows(wanted, note)


def with_actions(text: str) -> Source:
    """The kind of an input that has actions.

    Raises:
        RequestError: it has none.
    """
    source = source_of(text)
    if source.action_width is None:
        raise RequestError(
            f"data.input={text} has no actions; task action takes a LeRobot data set, with "
            f"meta/info.json, or a folder in the Bridge layout, with annotation/train/ID.json and "
            f"videos/train/ID/rgb.mp4"
        )
    return source
