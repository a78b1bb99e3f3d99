"""Which videos a run prepares: those of a folder, of a glob pattern, or of a list, in an order that
every run repeats.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from cosmos_hpc.errors import RequestError
from cosmos_hpc.recipes import Data

EXTENSIONS = (".mp4", ".mov", ".mkv", ".avi", ".webm")
#: A JSONL of entries, and a list with one path a line.
JSONL, PATHS = (".jsonl", ".txt")
#: Keys of a JSONL entry that hold the path.
PATH_KEYS = ("visual_input", "video")
#: A longer line is no entry: a path has at most 4 KiB.
_LONGEST_LINE = 1 << 20
#: Entries of a list that are looked for on the disk before a run starts.
_LOOKED_AT = 100
#: What opening a file costs, in bytes of video and in frames decoded.
_OPENING_BYTES, _OPENING_FRAMES = 1 << 16, 8


#: A video of a run: its ``path``, absolute or relative to the source's root, and where the source
#: says so a ``prompt``. A name that is not UTF-8 keeps its bytes through surrogate escapes.
Row = dict[str, Any]


def _ignore(_: str) -> None:
    pass


def list_videos(source: str) -> list[str]:
    """Paths of the videos of a source, as :func:`list_rows` lists them."""
    return [row["path"] for row in list_rows(source)[1]]


def list_rows(source: str, note: Callable[[str], None] = _ignore) -> tuple[str, list[Row]]:
    """The videos of ``data.input``: sorted by path, those of a list in its order.

    Args:
        source: a folder, searched recursively; a glob pattern, in which ``**`` stands for any
            folders; a ``.jsonl`` file with the path of a video under ``visual_input`` or ``video``
            in every line and optionally a ``prompt``; a ``.txt`` file with one path a line.
            Relative paths of a list are relative to the folder that holds it. Links to folders are
            followed, each real folder once.
        note: is told in a sentence what a person should know of the list.

    Returns:
        The folder that relative paths are relative to, and a row a video.

    Raises:
        RequestError: the source does not exist, cannot be read or holds no video, or a line of a
            list is not an entry; says which line, what is wrong and what to do.
    """
    root, pattern = _split(source)
    if pattern is None:
        return root, _listed(source, root, note)
    parts = [None if part == "**" else _matcher(part) for part in pattern]
    videos, others = [], 0
    try:
        for name in _files_below(root, lambda folder: _may_lead(parts, folder.split("/"))):
            if not _matches(parts, name.split("/")):
                continue
            if name.lower().endswith(EXTENSIONS):
                videos.append(name)
            else:
                others += 1
    except OSError as e:
        raise RequestError(
            f"data.input={source} cannot be read: {e.filename}: {e.strerror}"
        ) from None
    if not videos:
        what = "files" if pattern == ["**"] else "matching files"
        raise RequestError(
            f"data.input={source} holds no video: none of its {others} {what} ends in "
            f"{', '.join(EXTENSIONS)}"
        )
    return root, [{"path": name} for name in sorted(videos)]


def resolve_source(source: str) -> str:
    """The source as an absolute path through no links to folders.

    On many clusters one folder is reached by several paths. A list keeps its own name, which may be
    a link to a file elsewhere, because its entries are relative to where it is found.

    Raises:
        RequestError: there is no such source.
    """
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
        if source.endswith((JSONL, PATHS)):
            return str(Path(source).parent), None
        raise RequestError(
            f"data.input={source} is not a folder; give the folder that holds the videos, a glob "
            f"pattern, or a list of them that ends in {JSONL} or {PATHS}"
        )
    parts = [part for part in source.split("/") if part not in ("", ".")]
    fixed = 0
    while fixed < len(parts) and not glob.has_magic(parts[fixed]):
        fixed += 1
    if fixed == len(parts):
        raise RequestError(
            f"data.input={source} does not exist; give a folder that holds videos, a glob "
            f"pattern, or a list of them that ends in {JSONL} or {PATHS}"
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


def _files_below(root: str, enter: Callable[[str], bool]) -> Iterator[str]:
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


def _listed(source: str, root: str, note: Callable[[str], None]) -> list[Row]:
    """The entries of a list, in its order, each once."""
    read = _read_json if source.endswith(JSONL) else _read_path
    rows: list[Row] = []
    seen: set[tuple[str, str | None]] = set()
    twice: list[int] = []
    here = os.path.join(os.path.realpath(root), "")
    try:
        for number, line in _lines(source):
            try:
                row = read(line)
            except ValueError as e:
                raise RequestError(f"data.input={source}, line {number}: {e}") from None
            # One file by its absolute and its relative path is one entry.
            key = row["path"].removeprefix(here), row.get("prompt")
            if key in seen:
                twice.append(number)
            else:
                seen.add(key)
                rows.append(row)
    except OSError as e:
        raise RequestError(f"data.input={source} cannot be read: {e.strerror}") from None
    if not rows:
        raise RequestError(f"data.input={source} holds no video: all of its lines are blank")
    _check_some_exist(source, root, rows)
    if twice:
        note(
            f"{len(twice)} of {len(rows) + len(twice)} entries of {source} repeat an earlier one "
            f"and are left out (the first is line {twice[0]})"
        )
    return rows


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Numbers and content of the lines of a file that are not blank."""
    with open(path, "rb") as f:
        for number, line in enumerate(iter(lambda: f.readline(_LONGEST_LINE), b""), 1):
            if len(line) == _LONGEST_LINE:
                raise RequestError(
                    f"data.input={path}, line {number}: it is longer than {_LONGEST_LINE} bytes; "
                    f"give one entry a line"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put first
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if line.strip():
                yield number, line


def _read_path(line: bytes) -> Row:
    return {"path": _checked(os.fsdecode(line))}


def _read_json(line: bytes) -> Row:
    """An entry of a JSONL.

    Raises:
        ValueError: it is none; says what is wrong and what to do.
    """
    keys = " or ".join(PATH_KEYS)
    try:
        # Names that are not UTF-8 stand in lists as they are.
        text = line.decode("utf-8", "surrogateescape")
        # Numbers mean nothing here, and int refuses very long ones.
        row = json.loads(text, object_pairs_hook=_unique, parse_int=float)
    except json.JSONDecodeError as e:
        raise ValueError(
            f"it is not JSON ({e.msg} at character {e.pos + 1}); write one object a line, with the "
            f"path under {keys}"
        ) from None
    except RecursionError:
        raise ValueError("it is nested too deeply; write one flat object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"it is not an object; write one a line, with the path under {keys}")
    paths = [(key, row[key]) for key in PATH_KEYS if key in row]
    if not paths:
        raise ValueError(f"it has no path; give it under {keys}")
    if len(paths) > 1:
        raise ValueError(f"it has both {' and '.join(PATH_KEYS)}; keep one of them")
    key, path = paths[0]
    if not isinstance(path, str):
        raise ValueError(f"{key} is {_short(path)}; it must be the path of a video, a text")
    prompt = row.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"prompt is {_short(prompt)}; it must be a text or be left out")
    if prompt is not None and not _encodes(prompt):
        raise ValueError("prompt is not text in UTF-8; save the list in that encoding")
    found = {"path": _checked(path)}
    return found if prompt is None else {**found, "prompt": prompt}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{_short(twice)} stands there twice; keep one of them")
    return row


def _checked(path: str) -> str:
    """The path of a listed video, without empty parts.

    Raises:
        ValueError: it cannot be the path of a video.
    """
    if "\0" in path or not _encodes(path, "surrogateescape"):
        raise ValueError(f"{_short(path)} holds a character that no file name can hold; mend it")
    if not path.lower().endswith(EXTENSIONS):
        raise ValueError(
            f"{_short(path)} is no video by its name; it must end in one of {', '.join(EXTENSIONS)}"
        )
    # Parts .. stay: behind a link they are not what they seem.
    return str(PurePosixPath(path)) if "//" in path or "./" in path else path


def _encodes(text: str, errors: str = "strict") -> bool:
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


#: What is no text in JSON, in words.
_KINDS = {dict: "an object", list: "a list", bool: "a truth value", float: "a number"}


def _short(value: object) -> str:
    """A value of a list as a person can read it in a sentence."""
    if not isinstance(value, str):
        return _KINDS.get(type(value), "null")
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_some_exist(source: str, root: str, rows: list[Row]) -> None:
    """Refuse a list none of whose videos is there: it is of another machine, or of another folder.

    A few are looked at. Those that are missing one by one are listed as failed by the run.
    """
    some = [os.path.join(root, row["path"]) for row in rows[:: -(-len(rows) // _LOOKED_AT)]]
    if not any(map(os.path.exists, some)):
        raise RequestError(
            f"data.input={source}: none of {len(some)} videos that were looked for exists, the "
            f"first is {_short(some[0])}; relative paths are relative to the folder of the list"
        )


def video_costs(root: str, rows: list[Row], data: Data) -> tuple[str, list[int]]:
    """What preparing each video costs, for shards of equal cost, and in which unit.

    The first clip of a video costs the same whatever its length. For all clips it is the file's
    size, which needs no file to be opened, or with ``data.probe`` the frames of its header.

    Raises:
        RequestError: ``data.probe`` is set and PyAV is not installed.
    """
    if not data.probe and data.clips == "first":
        return "videos", [1] * len(rows)
    paths = [os.path.join(root, row["path"]) for row in rows]
    if data.probe:
        frames = _declared_frames(paths)
        if data.clips == "first":
            frames = [min(count, data.frames) for count in frames]
        return "frames", [_OPENING_FRAMES + count for count in frames]
    return "bytes", [_OPENING_BYTES + size for size in file_sizes(paths)]


def _declared_frames(paths: list[str]) -> list[int]:
    try:
        from cosmos_hpc.worker.probe import declared_frames
    except ModuleNotFoundError as e:
        raise RequestError(
            f"data.probe=true reads the headers of the videos here, and {e.name} is not installed; "
            f"pip install -c constraints.txt '.[worker]', or leave data.probe out"
        ) from None
    return declared_frames(paths)


def file_sizes(paths: list[str], threads: int = 16) -> list[int]:
    """Bytes of each file; 0 of one that is not there.

    In threads, because on a network file system every look takes its time.
    """
    blocks = [paths[i : i + 1000] for i in range(0, len(paths), 1000)]
    with ThreadPoolExecutor(threads) as pool:
        return [size for block in pool.map(_sizes, blocks) for size in block]


def _sizes(paths: list[str]) -> list[int]:
    sizes = []
    for path in paths:
        try:
            sizes.append(os.stat(path).st_size)  # noqa: PTH116 - of a million, Path takes seconds
        except OSError:
            sizes.append(0)
    return sizes
