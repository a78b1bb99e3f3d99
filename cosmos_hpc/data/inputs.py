"""What to generate from: a picture, a video, a folder of these, or a list of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cosmos_hpc.data.lists import EXTENSIONS, JSONL, LISTS, Entries, first_without, read_list, short
from cosmos_hpc.data.videos import files_below
from cosmos_hpc.data.wanted import Row
from cosmos_hpc.errors import RequestError

#: Endings of pictures, in any case of letters.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

_ENTRIES = Entries(
    setting="generate.input",
    endings=(*PICTURES, *EXTENSIONS),
    what="picture or video",
    texts=("prompt", "actions"),
)


def list_inputs(
    source: str, note: Callable[[str], None], *, needs: str | None, given: str | None
) -> tuple[str, list[Row]]:
    """What to generate from: sorted by path, the entries of a list in its order.

    Args:
        source: a picture, a video, a folder, searched recursively, a ``.jsonl`` list with the path
            under ``visual_input`` or ``video`` in each line, or a ``.txt`` list of paths.
        note: called with a sentence about what was left out.
        needs: what the model reads beside frames: ``prompt``, ``actions`` (a file) or nothing.
        given: that of a single picture or video.

    Returns:
        The folder that relative paths are relative to, and one row per input with its ``path`` and
        what the model needs.

    Raises:
        RequestError: the source cannot be read or holds no input, an input lacks what the model
            needs or has what it does not read; says which one and what to do.
    """
    path = Path(source)
    if path.is_dir():
        root, rows = source, _of_folder(source, note)
    elif not path.exists():
        raise RequestError(
            f"generate.input={source} does not exist; give a picture, a video, a folder of "
            f"them, or a list that ends in {', '.join(LISTS)}"
        )
    elif source.endswith(LISTS):
        root = str(path.parent)
        rows = read_list(source, root, note, _ENTRIES)
    elif source.lower().endswith(_ENTRIES.endings):
        root, rows = str(path.parent), [{"path": path.name}]
        if needs and given is not None:
            rows[0][needs] = given
    else:
        raise RequestError(
            f"generate.input={source} is neither a picture nor a video by its name; it must end in "
            f"one of {', '.join(_ENTRIES.endings)}, or be a list that ends in {', '.join(LISTS)}"
        )
    if given is not None and (len(rows) > 1 or rows[0].get(str(needs)) != given):
        raise RequestError(
            f"generate.{needs} goes with one picture or video, and generate.input={source} is a "
            f"folder or a list; give the {needs} in each line of a {JSONL} list"
        )
    _check(source, rows, needs)
    return root, rows


def _of_folder(source: str, note: Callable[[str], None]) -> list[Row]:
    found, others = [], 0
    try:
        for name in files_below(source, lambda folder: True):
            if name.lower().endswith(_ENTRIES.endings):
                found.append(name)
            else:
                others += 1
    except OSError as e:
        raise RequestError(
            f"generate.input={source} cannot be read: {e.filename}: {e.strerror}"
        ) from None
    if not found:
        raise RequestError(
            f"generate.input={source} holds no picture or video: none of its {others} files ends "
            f"in {', '.join(_ENTRIES.endings)}"
        )
    if others:
        note(f"{others} files of {source} are neither pictures nor videos and are left out")
    return [{"path": name} for name in sorted(found)]


def _check(source: str, rows: list[Row], needs: str | None) -> None:
    """Refuse inputs that lack what the model needs, or have what it does not read."""
    for number, row in enumerate(rows, 1):
        which = f"generate.input={source}: {short(os.fspath(row['path']))} (entry {number})"
        if needs and not row.get(needs, "").strip():
            line = first_without(source, needs, _ENTRIES)
            which = which.replace(f"(entry {number})", f"({line})") if line else which
            how = "a file, " if needs == "actions" else ""
            raise RequestError(
                f"{which} has no {needs}, which the model reads; give generate.{needs}={how}or "
                f"{needs} in each line of a {JSONL} list"
            )
        for name in {"prompt", "actions"} - {needs}:
            if name in row:
                raise RequestError(
                    f"{which} has {'a prompt' if name == 'prompt' else name}, and the model reads "
                    f"{needs or 'frames alone'}; leave it out or choose another model"
                )
