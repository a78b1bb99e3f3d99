"""Lists of videos: entries of a JSONL, a CSV or a Parquet file, or one path per line."""

from __future__ import annotations

import csv
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import Struct

from cosmos_hpc.data.file_stats import check_some_exist, file_identities
from cosmos_hpc.data.parquet import column_names, read_columns
from cosmos_hpc.data.wanted import Row
from cosmos_hpc.errors import RequestError

EXTENSIONS = (".mp4", ".mov", ".mkv", ".avi", ".webm")
#: A JSONL of entries, a list with one path per line, and tables of entries.
JSONL, PATHS, CSV, PARQUET = (".jsonl", ".txt", ".csv", ".parquet")
TABLES = (CSV, PARQUET)
LISTS = (JSONL, PATHS, *TABLES)
#: Keys of an entry that hold the path; in tables a column of another name may as well.
PATH_KEYS, PLAIN_KEY = ("visual_input", "video"), "path"
#: Seconds between which a video lies in its file.
_SECONDS = ("start", "end")
#: A longer line is no entry: a path has at most 4 KiB.
_LONGEST_LINE = 1 << 20


class Entries(Struct, frozen=True):
    """What the entries of a list may be.

    Attributes:
        setting: that names the list, for messages.
        endings: of files that may be named.
        what: they are.
        texts: keys of an entry, beside its path, whose texts are kept.
    """

    setting: str = "data.input"
    endings: tuple[str, ...] = EXTENSIONS
    what: str = "video"
    texts: tuple[str, ...] = ("prompt",)

    @property
    def others(self) -> tuple[str, ...]:
        """Keys that mean something beside the path."""
        return (*self.texts, *_SECONDS)


#: Videos to prepare.
VIDEOS = Entries()


def read_list(
    source: str,
    root: str,
    note: Callable[[str], None],
    entries: Entries = VIDEOS,
    by_content: bool = False,
) -> list[Row]:
    """The entries of a list, in its order, each once.

    The same file with another prompt is another entry. Names that resolve to one file are one file.

    Args:
        source: path of the list.
        root: folder that its relative paths are relative to.
        note: called with a sentence about entries that were left out.
        entries: what they may be.
        by_content: files of the same content are one file.

    Raises:
        RequestError: it cannot be read, a line is not an entry, or none of the videos is there.
    """
    where = f"{entries.setting}={source}"
    rows: list[Row] = []
    numbers: list[int] = []
    kind = "row" if source.endswith(PARQUET) else "line"
    try:
        for number, read in _entries(source, where, entries):
            try:
                rows.append(read())
            except ValueError as e:
                raise RequestError(f"{where}, {kind} {number}: {e}") from None
            numbers.append(number)
    except OSError as e:
        raise RequestError(f"{where} cannot be read: {e.strerror}") from None
    if not rows:
        why = "it has no rows" if source.endswith(TABLES) else "all of its lines are blank"
        raise RequestError(f"{where} holds no {entries.what}: {why}")
    check_some_exist(where, root, rows, entries.what)
    kept, twice = _each_once(rows, root, entries, note, by_content)
    if twice:
        note(
            f"{len(twice)} of {len(rows)} entries of {source} repeat an earlier one and are left "
            f"out (the first is {kind} {numbers[twice[0]]})"
        )
    return kept


def first_without(source: str, key: str, entries: Entries = VIDEOS) -> str:
    """Where a list that was read has its first entry without a text, such as ``line 3``.

    Returns:
        Nothing, where no entry lacks it or the source is no list.
    """
    if not source.endswith(LISTS) or os.path.isdir(source):  # noqa: PTH112 - as it is written
        return ""
    kind = "row" if source.endswith(PARQUET) else "line"
    for number, read in _entries(source, source, entries):
        if not str(read().get(key) or "").strip():
            return f"{kind} {number}"
    return ""


def _each_once(
    rows: list[Row],
    root: str,
    entries: Entries,
    note: Callable[[str], None],
    by_content: bool,
) -> tuple[list[Row], list[int]]:
    """The entries that repeat none before them, and the indices of those that do.

    Entries of one file with different prompts get the path that the first of them has: which part
    of the data a video goes to follows from its path.
    """
    paths_there = [os.path.join(root, row["path"]) for row in rows]
    files = file_identities(paths_there, note, by_content)
    paths: dict[str, str] = {}
    seen: set[tuple[str, tuple[Any, ...]]] = set()
    kept, twice = [], []
    for index, (row, file) in enumerate(zip(rows, files, strict=True)):
        entry = file, tuple(row.get(key) for key in entries.others)
        if entry in seen:
            twice.append(index)
        else:
            seen.add(entry)
            row["path"] = paths.setdefault(file, row["path"])
            kept.append(row)
    return kept, twice


def _entries(source: str, where: str, entries: Entries) -> Iterator[tuple[int, Callable[[], Row]]]:
    """Numbers of the entries of a list, and what reads each or raises a ValueError."""
    if source.endswith(PARQUET):
        _check_columns(column_names(Path(source)), where)
        there = read_columns(Path(source), (*PATH_KEYS, PLAIN_KEY, *entries.others))
        for number, row in enumerate(there, 1):
            yield number, functools.partial(_read_row, row, entries)
    elif source.endswith(CSV):
        # A name that is not UTF-8 stands in a list as it is.
        with open(source, newline="", encoding="utf-8-sig", errors="surrogateescape") as f:
            try:
                table = csv.DictReader(f, strict=True)
                if table.fieldnames:
                    table.fieldnames = [name.strip() for name in table.fieldnames]
                    _check_columns(table.fieldnames, where)
                for row in table:
                    yield table.line_num, functools.partial(_read_csv, row, entries)
            except csv.Error as e:
                line = f"line {table.line_num + 1}"
                raise RequestError(f"{where}, {line}: it is not CSV: {e}") from None
    else:
        of_line = _read_json if source.endswith(JSONL) else _read_path
        for number, content in _lines(source, where):
            yield number, functools.partial(of_line, content, entries)


def _check_columns(names: Sequence[str], where: str) -> None:
    """Refuse a table without a path, or with two columns of one name."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"{where} has two columns {short(twice)}; keep one of them")
    if not {*PATH_KEYS, PLAIN_KEY} & set(names):
        there = ", ".join(map(short, names[:20]))
        raise RequestError(
            f"{where} has no column {', '.join(PATH_KEYS)} or {PLAIN_KEY} with the paths; its "
            f"columns are {there}"
        )


def _lines(path: str, where: str) -> Iterator[tuple[int, bytes]]:
    """Numbers and content of the lines of a file that are not blank."""
    with open(path, "rb") as f:
        for number, line in enumerate(iter(lambda: f.readline(_LONGEST_LINE), b""), 1):
            if len(line) == _LONGEST_LINE:
                raise RequestError(
                    f"{where}, line {number}: it is longer than {_LONGEST_LINE} bytes; "
                    f"give one entry per line"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put first
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if line.strip():
                yield number, line


def _read_path(line: bytes, entries: Entries) -> Row:
    return {"path": _checked(os.fsdecode(line), entries)}


def _read_json(line: bytes, entries: Entries) -> Row:
    """An entry of a JSONL.

    Raises:
        ValueError: it is none; says what is wrong and what to do.
    """
    keys = " or ".join(PATH_KEYS)
    try:
        # Names that are not UTF-8 stand in lists as they are.
        text = line.decode("utf-8", "surrogateescape")
        row = _JSON.decode(text)
    except json.JSONDecodeError as e:
        raise ValueError(
            f"it is not JSON ({e.msg} at character {e.pos + 1}); write one object per line, with "
            f"the path under {keys}"
        ) from None
    except RecursionError:
        raise ValueError("it is nested too deeply; write one flat object per line") from None
    if not isinstance(row, dict):
        raise ValueError(f"it is not an object; write one per line, with the path under {keys}")
    return _entry(row, entries)


def _read_csv(row: dict[Any, Any], entries: Entries) -> Row:
    """An entry of a CSV, in which nothing and an empty text are one."""
    if None in row or None in row.values():
        raise ValueError("it has fewer or more values than the first line has names")
    given: dict[str, Any] = {key: text for key, text in row.items() if text != ""}
    for key in _SECONDS:
        if key in given:
            try:
                given[key] = float(given[key])
            except ValueError:
                raise ValueError(f"{key} is {short(given[key])}; it must be seconds") from None
    return _entry(given, entries, (PLAIN_KEY,))


def _read_row(row: dict[str, Any], entries: Entries) -> Row:
    """An entry of a Parquet file, in which null is nothing."""
    given = {key: value for key, value in row.items() if value is not None}
    for key in _SECONDS:
        if isinstance(given.get(key), Decimal):
            given[key] = float(given[key])
    return _entry(given, entries, (PLAIN_KEY,))


def _entry(row: dict[str, Any], entries: Entries, also: tuple[str, ...] = ()) -> Row:
    """What an entry of any list says.

    Args:
        row: the entry.
        entries: what it may be.
        also: further keys that may hold the path.

    Raises:
        ValueError: it cannot be; says what is wrong and what to do.
    """
    keys = " or ".join((*PATH_KEYS, *also))
    named = [key for key in PATH_KEYS if key in row] or [key for key in also if key in row]
    if not named:
        raise ValueError(f"it has no path; give it under {keys}")
    if len(named) > 1:
        raise ValueError(f"it has both {' and '.join(PATH_KEYS)}; keep one of them")
    key, path = named[0], row[named[0]]
    if not isinstance(path, str):
        raise ValueError(f"{key} is {short(path)}; it must be the path of a {entries.what}, a text")
    found: Row = {"path": _checked(path, entries)}
    for name in entries.texts:
        text = row.get(name)
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(f"{name} is {short(text)}; it must be a text or be left out")
        if not _encodes(text):
            raise ValueError(f"{name} is not text in UTF-8; save the list in that encoding")
        found[name] = text
    return found | _seconds(row)


def _seconds(row: dict[str, Any]) -> Row:
    """``start`` and ``end`` of an entry, those that it has."""
    found = {key: row[key] for key in _SECONDS if row.get(key) is not None}
    for key, value in found.items():
        if type(value) not in (int, float) or not 0 <= value < float("inf"):
            what = short(value) if type(value) not in (int, float) else value
            raise ValueError(f"{key} is {what}; it must be seconds from the video's beginning")
    if "end" in found and found["end"] <= found.get("start", 0):
        raise ValueError(f"end is {found['end']:g}, not after start {found.get('start', 0):g}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{short(twice)} is given twice; keep one of them")
    return row


#: Made once, not for each line. Only seconds are numbers that mean something, and int refuses very
#: long ones.
_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_int=float)


def _checked(path: str, entries: Entries) -> str:
    """The path of a listed file, without empty parts.

    Raises:
        ValueError: it cannot be the path of such a file.
    """
    if "\0" in path or not _encodes(path, "surrogateescape"):
        raise ValueError(f"{short(path)} holds a character that no file name can hold; rename it")
    if not path.lower().endswith(entries.endings):
        raise ValueError(
            f"{short(path)} is no {entries.what} by its name; it must end in one of "
            f"{', '.join(entries.endings)}"
        )
    # Parts .. stay: after a link they are not what they seem.
    return str(PurePosixPath(path)) if "//" in path or "./" in path else path


def _encodes(text: str, errors: str = "strict") -> bool:
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


#: What is no text in JSON, in words.
_KINDS = {
    dict: "an object",
    list: "a list",
    bool: "a truth value",
    float: "a number",
    int: "a number",
    type(None): "null",
}


def short(value: object) -> str:
    """A value of a list as a person can read it in a sentence."""
    if not isinstance(value, str):
        return _KINDS.get(type(value), f"a {type(value).__name__}")
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
