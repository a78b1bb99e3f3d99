"""The Bridge layout of robot clips: which clips a folder holds, and what their instructions say.

::

    videos/PART/ID/rgb.mp4     what the camera saw
    annotation/PART/ID.json    ``action`` from each frame to the next, ``state``, ``texts``, ...

PART is ``train``, ``val`` or ``test``.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cosmos_hpc.data.parts import FOLDERS
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import counted

#: Parts by the names of their folders.
_PARTS = {folder: part for part, folder in FOLDERS.items()}


class AnnotationError(ValueError):
    """A clip whose annotation cannot be used.

    Attributes:
        kind: ``annotation`` (missing or not what it should be) or ``actions``, for counting.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_bridge(folder: str) -> bool:
    """Whether a folder has the Bridge layout."""
    return all((Path(folder) / name).is_dir() for name in ("annotation", "videos"))


def list_clips(folder: str) -> list[dict[str, Any]]:
    """Clips of a folder by part and number: those that have a video, an annotation, or both.

    Returns:
        Rows with ``path`` and ``annotation``, relative to the folder, and ``part`` (``train``,
        ``validation`` or ``test``) where the folder itself is divided.

    Raises:
        RequestError: it cannot be read, or holds no clip.
    """
    root = Path(folder)
    try:
        names = {p.name for top in ("annotation", "videos") for p in (root / top).iterdir()}
        parts = sorted(name for name in names if not name.startswith("."))
        unknown = [part for part in parts if part not in _PARTS]
        if unknown:
            raise RequestError(
                f"data.input={folder} holds a part {unknown[0]!r}; parts are {', '.join(_PARTS)}"
            )
        divided = "train" in parts and len(parts) > 1
        rows = [
            {
                "path": f"videos/{part}/{clip}/rgb.mp4",
                "annotation": f"annotation/{part}/{clip}.json",
                **({"part": _PARTS[part]} if divided else {}),
            }
            for part in _PARTS
            if part in parts
            for clip in sorted(_clips(root, part), key=lambda name: (len(name), name))
        ]
    except OSError as e:
        raise RequestError(
            f"data.input={folder} cannot be read: {e.filename}: {e.strerror}"
        ) from None
    if not rows:
        raise RequestError(f"data.input={folder} holds no clip in annotation or videos")
    return rows


def _clips(root: Path, part: str) -> set[str]:
    annotated = {p.stem for p in (root / "annotation" / part).glob("*.json")}
    return annotated | {p.name for p in (root / "videos" / part).glob("*") if p.is_dir()}


def action_width(folder: str) -> int:
    """Numbers of an action in the first clip that has any.

    Raises:
        RequestError: as :func:`list_clips`, or no clip has an action.
    """
    for row in list_clips(folder):
        with contextlib.suppress(AnnotationError):
            action = read_annotation(Path(folder) / row["annotation"]).get("action")
            return len(_rows("action", action)[0])
    raise RequestError(f"data.input={folder}: no annotation has an action")


def list_instructions(folder: str, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Clips as :func:`list_clips` lists them, with their instruction as ``prompt``.

    A clip whose annotation gives none has ``error`` and ``reason`` instead.

    Args:
        folder: in the Bridge layout.
        note: called from time to time with the progress.

    Raises:
        RequestError: as :func:`list_clips`.
    """
    rows = list_clips(folder)

    def read(row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"prompt": _instruction(read_annotation(Path(folder) / row["annotation"]))}
        except AnnotationError as e:
            return {"error": e.kind, "reason": str(e)}

    # Several at a time: each waits for a network file system.
    with ThreadPoolExecutor(files.THREADS) as pool:
        found = counted(pool.map(read, rows), len(rows), "annotations read", note)
        return [{**row, **said} for row, said in zip(rows, found, strict=True)]


def _instruction(annotation: dict[str, Any]) -> str:
    texts = annotation.get("texts")
    if not (isinstance(texts, list) and texts and isinstance(texts[0], str) and texts[0].strip()):
        raise AnnotationError("annotation", "its annotation has no text in texts")
    return texts[0]


def read_annotation(path: Path) -> dict[str, Any]:
    """The annotation of a clip.

    Raises:
        AnnotationError: there is none, or it is not JSON of a mapping.
        OSError: the machine cannot read now.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AnnotationError("annotation", f"it has no annotation {path.name}") from None
    except PermissionError:
        raise AnnotationError("annotation", f"no permission to read {path.name}") from None
    except (ValueError, RecursionError) as e:
        raise AnnotationError("annotation", f"{path.name} is not JSON: {e}") from None
    if not isinstance(value, dict):
        raise AnnotationError("annotation", f"{path.name} holds no mapping")
    return value


def movements(annotation: dict[str, Any], width: int) -> dict[str, list[Any]]:
    """What the robot did in a clip of T frames, every number checked.

    Args:
        annotation: of the clip.
        width: numbers of an action.

    Returns:
        ``action``, T - 1 rows of ``width`` numbers, from each frame to the next; ``state``, T rows
        of as many as the annotation has; ``gripper``, T numbers.

    Raises:
        AnnotationError: one of them is missing, has another size, or holds what is no finite
            number.
    """
    action = _rows("action", annotation.get("action"), width)
    state = _rows("state", annotation.get("state"))
    gripper = _numbers("continuous_gripper_state", annotation.get("continuous_gripper_state"))
    frames = len(action) + 1
    for name, rows in (("state", state), ("continuous_gripper_state", gripper)):
        if len(rows) != frames:
            raise AnnotationError(
                "actions", f"{len(action)} actions go with {frames} of {name}, not {len(rows)}"
            )
    return {"action": action, "state": state, "gripper": gripper}


def _rows(name: str, rows: Any, width: int | None = None) -> list[list[float]]:
    """Rows of ``width`` numbers; None: of as many as the first has."""
    if not isinstance(rows, list) or not rows:
        raise AnnotationError("actions", f"its annotation has no {name}")
    width = width or len(_numbers(f"{name} 0", rows[0])) or None
    for number, row in enumerate(rows):
        if len(_numbers(f"{name} {number}", row)) != width:
            raise AnnotationError("actions", f"{name} {number} has {len(row)} numbers, not {width}")
    return rows


def _numbers(name: str, row: Any) -> list[float]:
    if not isinstance(row, list) or not all(type(x) in (int, float) for x in row):
        raise AnnotationError("actions", f"{name} is no list of numbers")
    if not all(map(math.isfinite, row)):
        raise AnnotationError("actions", f"{name} holds NaN or infinity")
    return row
