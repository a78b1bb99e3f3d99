"""What a run needs from its input, in the form that every kind of source takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

#: Is told in a sentence what a person should know.
Note = Callable[[str], None]

#: A video of a run: its ``path``, absolute or relative to the source's root, and where the source
#: says so a ``prompt``, a ``part``, which seconds or bytes of the file it is, and where to find
#: what else belongs to it. A name that is not UTF-8 keeps its bytes through surrogate escapes.
Row = dict[str, Any]
#: How data sets on the Hub are named, as the Hub's own library does.
HUB_DATASETS = "hf://datasets/"


def ignore(_: str) -> None:
    """Takes notes for those who do not want any."""


class Wanted(Struct, frozen=True):
    """What to list.

    Attributes:
        input: the source: a folder, a file, or a pattern.
        camera: which of several; None: the only one.
        episodes: which, as ``0-9,12``; None: all.
        frame_rate: to which videos are resampled; None: not at all.
        action: name of the feature that holds a robot's actions; None: they are not wanted.
        normalize_action: how actions are made alike, or ``none``.
        prompts: whether every video is to have a text.
        by_content: files of the same content are one file.
    """

    input: str
    camera: str | None = None
    episodes: str | None = None
    frame_rate: float | None = None
    action: str | None = None
    normalize_action: str = "none"
    prompts: bool = False
    by_content: bool = False
