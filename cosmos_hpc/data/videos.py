"""Which videos a run prepares: those of a folder, of a glob pattern, or of a list, in an order that
every run repeats.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cosmos_hpc.data.file_stats import file_identities, file_sizes
from cosmos_hpc.data.lists import EXTENSIONS, LISTS, read_list, short
from cosmos_hpc.data.wanted import HUB_DATASETS, Row, ignore
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.progress import counted

#: Endings of single files that hold or list videos.
_FILES = (*LISTS, ".tar")
#: What opening a file costs, in bytes of video, in frames decoded, and in the time these take.
_OPENING_BYTES, _OPENING_FRAMES, _OPENING_MILLISECONDS = 1 << 16, 8, 250


def list_video_files(
    source: str, note: Callable[[str], None] = ignore, by_content: bool = False
) -> tuple[str, list[Row]]:
    """The videos of ``data.input``: sorted by path, those of a list in its order.

    Args:
        source: a folder, searched recursively; a glob pattern, in which ``**`` stands for any
            folders; a ``.jsonl`` file with the path of a video under ``visual_input`` or ``video``
            in every line and optionally a ``prompt``, ``start`` and ``end``; a ``.csv`` or
            ``.parquet`` file with such columns; a ``.txt`` file with one path per line.
            Relative paths of a list are relative to the folder that holds it. Links to folders are
            followed, each real folder once.
        note: called with sentences about the list for the user.
        by_content: files of the same content are one file.

    Returns:
        The folder that relative paths are relative to, and one row per video.

    Raises:
        RequestError: the source does not exist, cannot be read or holds no video, or a line of a
            list is not an entry; says which line, what is wrong and what to do.
    """
    if source.endswith(LISTS) and not _is_folder(source):
        root, _ = _split(source)
        return root, read_list(source, root, note, by_content=by_content)
    root, names, others = matching_files(source, EXTENSIONS)
    if not names:
        what = "files" if _is_folder(source) else "matching files"
        raise RequestError(
            f"data.input={source} holds no video: none of its {others} {what} ends in "
            f"{', '.join(EXTENSIONS)}"
        )
    once = _one_name_each(source, root, names, note, by_content)
    return root, [{"path": name} for name in once]


def matching_files(source: str, endings: tuple[str, ...]) -> tuple[str, list[str], int]:
    """Files of a folder, of a pattern, or the one that is named, with certain endings.

    Returns:
        The folder that names are relative to, the names sorted, and how many others there are.

    Raises:
        RequestError: there is no such source, or it cannot be read.
    """
    root, pattern = _split(source)
    if pattern is None:
        return root, [Path(source).name], 0
    parts = [None if part == "**" else _matcher(part) for part in pattern]
    found, others = [], 0
    try:
        for name in files_below(root, lambda folder: _may_lead(parts, folder.split("/"))):
            if not _matches(parts, name.split("/")):
                continue
            if name.lower().endswith(endings):
                found.append(name)
            else:
                others += 1
    except OSError as e:
        raise RequestError(
            f"data.input={source} cannot be read: {e.filename}: {e.strerror}"
        ) from None
    return root, sorted(found), others


def _one_name_each(
    source: str, root: str, names: list[str], note: Callable[[str], None], by_content: bool
) -> list[str]:
    """The names without those that lead to the file of an earlier one."""
    kept: dict[str, str] = {}
    left_out = []
    paths = [os.path.join(root, name) for name in names]
    for name, file in zip(names, file_identities(paths, note, by_content), strict=True):
        if kept.setdefault(file, name) != name:
            left_out.append((name, kept[file]))
    if left_out:
        what = "copies of" if by_content else "links to"
        note(
            f"{len(left_out)} of {len(names)} videos of {source} are {what} another one and are "
            f"left out (the first is {short(left_out[0][0])}, which is {short(left_out[0][1])})"
        )
    return list(kept.values())


def source_folder(source: str) -> str:
    """The folder that a source is, is in, or begins in; empty for one on the Hub.

    Raises:
        RequestError: there is no such source.
    """
    if source.startswith(HUB_DATASETS):
        return ""
    return _split(source)[0]


def resolve_source(source: str) -> str:
    """The source as an absolute path through no links to folders.

    On many clusters one folder is reached by several paths. A list keeps its own name, which may be
    a link to a file elsewhere, because its entries are relative to where it is found.

    Raises:
        RequestError: there is no such source.
    """
    if source.startswith(HUB_DATASETS):
        return source
    root, pattern = _split(source)
    real = os.path.realpath(root)
    if pattern is None:
        return os.path.join(real, Path(source).name)
    return real if pattern == ["**"] else os.path.join(glob.escape(real), *pattern)


def _split(source: str) -> tuple[str, list[str] | None]:
    """Folder of a source, and the parts of the pattern below it; None for a list."""
    if _is_folder(source):
        return source, ["**"]
    if os.access(source, os.F_OK):
        if source.endswith(_FILES):
            return str(Path(source).parent), None
        raise RequestError(
            f"data.input={source} is not a folder; give the folder that holds the videos, a glob "
            f"pattern, or a list of them that ends in {' or '.join(_FILES)}"
        )
    parts = [part for part in source.split("/") if part not in ("", ".")]
    fixed = 0
    while fixed < len(parts) and not glob.has_magic(parts[fixed]):
        fixed += 1
    if fixed == len(parts):
        raise RequestError(
            f"data.input={Path(source).absolute()} does not exist; give the folder that holds the "
            f"videos, a glob pattern, or a list of them that ends in {' or '.join(_FILES)}"
        )
    root = ("/" if source.startswith("/") else "") + "/".join(parts[:fixed]) or "."
    if not _is_folder(root):
        raise RequestError(f"data.input={source} matches nothing: {root} is not a folder")
    return root, parts[fixed:]


def _is_folder(path: str) -> bool:
    # Path.is_dir raises for names that are too long.
    return os.path.isdir(path)  # noqa: PTH112


def _matcher(part: str) -> Callable[[str], object]:
    return re.compile(fnmatch.translate(part)).match


#: Parts of a pattern: what a name must match, or None for any folders.
_Parts = list[Callable[[str], object] | None]


def _matches(parts: _Parts, names: list[str]) -> bool:
    """Whether a path matches a pattern."""
    if not parts:
        return not names
    first, rest = parts[0], parts[1:]
    if first is None:
        return not rest or any(_matches(rest, names[i:]) for i in range(len(names)))
    return bool(names and first(names[0])) and _matches(rest, names[1:])


def _may_lead(parts: _Parts, names: list[str]) -> bool:
    """Whether something below a folder may match a pattern."""
    for part, name in zip(parts, names, strict=False):
        if part is None:
            return True
        if not part(name):
            return False
    return len(names) < len(parts)


def files_below(root: str, enter: Callable[[str], bool]) -> Iterator[str]:
    """Files below a folder, relative to it; ``enter`` says which folders are looked into."""
    seen: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        inside = folders.pop()
        path = os.path.join(root, inside)
        status = Path(path).stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            # Sorted: which of two links to a folder counts must not follow from the disk.
            for entry in sorted(entries, key=lambda e: e.name, reverse=True):
                name = os.path.join(inside, entry.name)
                if entry.is_dir():
                    if enter(name):
                        folders.append(name)
                elif entry.is_file():
                    yield name


def video_costs(
    root: str,
    rows: list[Row],
    *,
    clips: str,
    frames: int,
    probe: Callable[[list[str]], Iterable[int]] | None = None,
    note: Callable[[str], None] = ignore,
) -> tuple[str, list[int]]:
    """What preparing each video costs, for shards of equal cost, and in which unit.

    The first clip of a video costs the same whatever its length. For all clips it is the file's
    size, which needs no file to be opened, or with ``probe`` the frames of its header; or what the
    source itself says: frames, seconds, or the size within a tar.

    Args:
        root: that the rows' paths are relative to.
        rows: of the videos.
        clips, frames: settings of the recipe's data.
        probe: reads how many frames the header of each of some files promises.
        note: called from time to time with the number of headers read.
    """
    if not probe and clips == "first":
        return "videos", [1] * len(rows)
    if all("frames" in row for row in rows):
        # The source says how many.
        each = (row["frames"] if type(row["frames"]) is int else 0 for row in rows)
        return "frames", [_OPENING_FRAMES + max(0, count) for count in each]
    if all("end" in row for row in rows):
        lengths = (row["end"] - row.get("start", 0.0) for row in rows)
        return "milliseconds", [_OPENING_MILLISECONDS + round(1000 * length) for length in lengths]
    if all("size" in row or "error" in row for row in rows):
        return "bytes", [_OPENING_BYTES + row.get("size", 0) for row in rows]
    paths = [os.path.join(root, row["path"]) for row in rows]
    if probe:
        declared = list(counted(probe(paths), len(paths), "headers read", note))
        if clips == "first":
            declared = [min(count, frames) for count in declared]
        return "frames", [_OPENING_FRAMES + count for count in declared]
    return "bytes", [_OPENING_BYTES + size for size in file_sizes(paths)]
