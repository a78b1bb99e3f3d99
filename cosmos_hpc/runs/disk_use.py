"""What files and folders take on the disk, links not followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class DiskUse:
    """Bytes on the disk; a file with several names counts once.

    Attributes:
        bytes: of all entries so far.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[tuple[int, int]] = set()

    def add(self, found: os.stat_result) -> None:
        """Count an entry, as ``lstat`` shows it."""
        if found.st_nlink > 1:
            if (found.st_dev, found.st_ino) in self._seen:
                return
            self._seen.add((found.st_dev, found.st_ino))
        # POSIX counts blocks of 512 bytes, whatever those of the file system are.
        self.bytes += found.st_blocks * 512


def entries_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a folder, each with its ``lstat``; links are not followed.

    What vanishes meanwhile, or may not be read, is left out.
    """
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = list(entries)
        except OSError:
            continue
        for entry in found:
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            yield Path(entry.path), about


def bytes_of(path: Path) -> int:
    """Bytes that a file, or a folder with all that is in it, takes on the disk.

    Raises:
        OSError: there is none.
    """
    use = DiskUse()
    use.add(path.lstat())
    for _, found in entries_below(path) if not path.is_symlink() else ():
        use.add(found)
    return use.bytes


def size(count: float) -> str:
    """Bytes as a person would say them: ``12 kB``, ``3.4 GB``."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.{1 if count < 9.95 else 0}f} {unit}"
    return f"{count / 1000:.1f} TB"
