"""What the disk says of many videos: their sizes, and which names lead to one file."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cosmos_hpc.data.wanted import Row
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import counted

_BLOCK, _THREADS = 1000, 16
#: Files that are looked for on the disk before a run starts.
_LOOKED_AT = 100


class _Status(NamedTuple):
    """What is kept of a look at a file: of a million, all that the system says takes 2 GB."""

    device: int
    inode: int
    size: int
    modified: int
    links: int

    @property
    def file(self) -> tuple[int, int, int, int]:
        """The same for all names of one file.

        Size and age as well: some file systems give a number again to a file looked at later.
        """
        return self.device, self.inode, self.size, self.modified


def check_some_exist(where: str, root: str, rows: list[Row], what: str = "video") -> None:
    """Refuse a list none of whose files is there: it is of another machine, or another folder.

    A few are looked at. Those that are missing one by one are listed as failed by the run.

    Args:
        where: the setting and its value, for the message.
        root: that paths are relative to.
        rows: of the list.
        what: its files are.

    Raises:
        RequestError: none of them is there.
    """
    some = [os.path.join(root, row["path"]) for row in rows[:: -(-len(rows) // _LOOKED_AT)]]
    if not any(map(os.path.exists, some)):
        raise RequestError(
            f"{where}: none of {len(some)} {what}s that were looked for exists, the "
            f"first is {json.dumps(some[0])}; relative paths of a list are relative to its folder"
        )


def file_sizes(paths: list[str]) -> list[int]:
    """Bytes of each file; 0 of one that is not there."""
    return [status.size if status else 0 for status in _stats(paths)]


def file_identities(
    paths: list[str], note: Callable[[str], None], by_content: bool = False
) -> list[str]:
    """For each path a text that two paths share when they resolve to one file.

    They do so through links, through ``..``, where a folder is mounted twice, and on some file
    systems through two spellings of one name. Hard links stay files of their own, as copies do,
    unless content counts.

    Args:
        paths: absolute, or relative to the working folder.
        note: called from time to time with the number of files checked.
        by_content: files of the same content are one; those of one size are read.
    """
    stats = list(counted(_stats(paths), len(paths), "files looked at", note))
    inodes = [status and status.file for status in stats]
    names = Counter(inodes)
    first: dict[object, str] = {}
    found = []
    for path, status, inode in zip(paths, stats, inodes, strict=True):
        if status is None or names[inode] == 1:
            found.append(path)
        elif status.links == 1:
            found.append(first.setdefault(inode, path))
        else:
            # To resolve a path takes a look at each of its folders: only for what has hard links.
            found.append(unicodedata.normalize("NFC", os.path.realpath(path)))
    return _by_content(found, stats, note) if by_content else found


def _by_content(
    paths: list[str], stats: list[_Status | None], note: Callable[[str], None]
) -> list[str]:
    """The path of the first file with the same content, for each path."""
    sizes = Counter(status.size for status in stats if status)
    #: Of files that others may equal, one path each.
    inodes: dict[tuple[int, ...], str] = {}
    for path, status in zip(paths, stats, strict=True):
        if status and sizes[status.size] > 1:
            inodes.setdefault(status.file, path)
    with ThreadPoolExecutor(_THREADS) as pool:
        read = counted(pool.map(_digest, inodes.values()), len(inodes), "files compared", note)
        digests = dict(zip(inodes, read, strict=True))
    contents = [
        (digests.get(status.file) if status else None) or path
        for path, status in zip(paths, stats, strict=True)
    ]
    first = dict(zip(reversed(contents), reversed(paths), strict=True))
    return [first[content] for content in contents]


def _digest(path: str) -> str | None:
    """Of a file's content; None where it cannot be read, which the run then says."""
    try:
        return files.sha256(Path(path))
    except OSError:
        return None


def _stats(paths: list[str]) -> Iterator[_Status | None]:
    """Of each file; None of one that is not there.

    In threads, because on a network file system every look takes its time.
    """
    blocks = [paths[i : i + _BLOCK] for i in range(0, len(paths), _BLOCK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(_stat_block, blocks):
            yield from found


def _stat_block(paths: list[str]) -> list[_Status | None]:
    return [_stat(path) for path in paths]


def _stat(path: str) -> _Status | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - of a million, Path takes seconds
    except OSError:
        return None
    return _Status(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_nlink)
