"""What the robot of a LeRobot data set did: actions, states and grippers, and their statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosmos_hpc.data.bridge import AnnotationError
from cosmos_hpc.data.lerobot.info import STATE, LeRobot
from cosmos_hpc.errors import RequestError


def movements(
    source: LeRobot, row: Mapping[str, Any], action: str, width: int
) -> dict[str, list[Any]]:
    """What the robot did in an episode of T frames, every number checked.

    Args:
        source: the data set.
        row: of the pinned list: names the episode and the file that holds it.
        action: name of the feature that holds the actions.
        width: numbers of an action.

    Returns:
        ``action``, T rows of ``width`` numbers; where the data set has them ``state``, T rows, and
        ``gripper``, of each frame the number of the state that is named so, or a row of several.

    Raises:
        AnnotationError: a file or a row is missing, or something is no finite number.
        OSError: the machine cannot read now.
    """
    columns = [action, *([STATE] if STATE in source.features else [])]
    table = _rows_of(source.folder / row["data"], int(row["episode"]), columns)
    count, frames = len(table["frame_index"]), row["frames"]
    if count != frames:
        raise AnnotationError(
            "length", f"{frames} frames are described, and {row['data']} has {count} of it"
        )
    order = table["frame_index"]
    if order != list(range(frames)):
        raise AnnotationError("annotation", f"{row['data']} does not number its frames from 0 on")
    found: dict[str, list[Any]] = {"action": _numbers(action, table[action], width)}
    if STATE in table:
        found["state"] = state = _numbers(STATE, table[STATE], source.width(STATE))
        which = source.grippers()
        if which:
            each = [[row[i] for i in which] for row in state]
            found["gripper"] = [row[0] for row in each] if len(which) == 1 else each
    return found


def _rows_of(path: Path, episode: int, columns: list[str]) -> dict[str, list[Any]]:
    """Columns of the rows of an episode, and ``frame_index``."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    try:
        data = ds.dataset(str(path), format="parquet")
        table = data.to_table(
            columns=["frame_index", *columns],
            filter=ds.field("episode_index") == episode,
            use_threads=False,
        )
    except FileNotFoundError:
        raise AnnotationError("annotation", f"{path.name} with its actions is not there") from None
    except PermissionError:
        raise AnnotationError("annotation", f"no permission to read {path.name}") from None
    except (pa.ArrowException, KeyError) as e:
        reason = str(e).partition("\n")[0]
        raise AnnotationError("annotation", f"{path.name} cannot be read: {reason}") from None
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _numbers(name: str, rows: list[Any], width: int) -> list[list[float]]:
    found = []
    for frame, row in enumerate(rows):
        # A feature of one number is stored as that number.
        numbers = row if isinstance(row, list) else [row]
        if len(numbers) != width or None in numbers:
            what = "null" if None in numbers else f"{len(numbers)} numbers, not {width}"
            raise AnnotationError("actions", f"{name} of frame {frame} is {what}")
        if not all(isinstance(number, int | float) for number in numbers):
            raise AnnotationError("actions", f"{name} of frame {frame} is no row of numbers")
        if not all(map(math.isfinite, numbers)):
            raise AnnotationError("actions", f"{name} of frame {frame} holds NaN or infinity")
        found.append([float(number) for number in numbers])
    return found


def action_scale(source: LeRobot, action: str, how: str) -> dict[str, Any]:
    """How actions are made alike: ``(action - shift) / scale``, from the data set's statistics.

    Args:
        source: the data set.
        action: name of the feature.
        how: ``mean_std`` takes the mean away and divides by the standard deviation, ``min_max``
            maps the range to -1 to 1, ``none`` leaves actions as they are. A number that never
            changes becomes 0.

    Returns:
        ``feature``, ``normalize``, ``names``, ``shift``, ``scale``, and the statistics themselves
        where the data set has them: ``mean``, ``std``, ``min`` and ``max``.

    Raises:
        RequestError: the data set has no such statistics.
    """
    width = source.width(action)
    found = _statistics(source, action) or {}
    needs = {"mean_std": ("mean", "std"), "min_max": ("min", "max")}.get(how, ())
    for key in needs:
        values = found.get(key, [])
        if len(values) != width or not all(map(math.isfinite, values)):
            raise RequestError(
                f"data.normalize_action={how}: {source.folder} has no {key} of {action!r} in its "
                f"statistics (meta/stats.json, meta/episodes_stats.jsonl); use none"
            )
    shift, scale = [0.0] * width, [1.0] * width
    if how == "mean_std":
        shift, scale = found["mean"], found["std"]
    elif how == "min_max":
        pairs = list(zip(found["min"], found["max"], strict=True))
        shift, scale = [(a + b) / 2 for a, b in pairs], [(b - a) / 2 for a, b in pairs]
    return {
        "feature": action,
        "normalize": how,
        "names": source.names(action),
        "shift": shift,
        "scale": [value if abs(value) > 1e-8 else 1.0 for value in scale],
        **found,
    }


def _statistics(source: LeRobot, feature: str) -> dict[str, list[float]] | None:
    """``mean``, ``std``, ``min`` and ``max`` of a feature; None where nothing says them."""
    whole, each = (source.folder / "meta" / n for n in ("stats.json", "episodes_stats.jsonl"))
    keys = ("mean", "std", "min", "max")
    try:
        if whole.is_file():
            said = json.loads(whole.read_bytes()).get(feature) or {}
            return {key: _floats(said[key]) for key in keys if key in said}
        if each.is_file():
            lines = [json.loads(line) for line in each.read_bytes().splitlines() if line.strip()]
            stats = [line["stats"][feature] for line in lines if feature in line["stats"]]
            return _together(stats) if stats else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise RequestError(f"{source.folder}: its statistics cannot be read: {e!r}") from None
    return None


def _floats(values: Any) -> list[float]:
    return [float(value) for value in (values if isinstance(values, list) else [values])]


def _together(stats: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Statistics of all episodes from those of each."""
    counts = [_floats(one["count"])[0] for one in stats]
    each = {key: [_floats(one[key]) for one in stats] for key in ("mean", "std", "min", "max")}
    total, width = sum(counts), len(each["mean"][0])

    def weighted(rows: list[list[float]]) -> list[float]:
        pairs = list(zip(counts, rows, strict=True))
        return [sum(count * row[i] for count, row in pairs) / total for i in range(width)]

    mean = weighted(each["mean"])
    # The variance within the episodes, and that of their means.
    squares = [
        [s * s + (m - all_) ** 2 for s, m, all_ in zip(std, own, mean, strict=True)]
        for std, own in zip(each["std"], each["mean"], strict=True)
    ]
    return {
        "mean": mean,
        "std": [math.sqrt(value) for value in weighted(squares)],
        "min": [min(column) for column in zip(*each["min"], strict=True)],
        "max": [max(column) for column in zip(*each["max"], strict=True)],
    }
