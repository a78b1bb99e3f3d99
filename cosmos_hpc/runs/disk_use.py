"""What files and folders take on the disk, links not followed."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class DiskUse:
    """Bytes on the disk; a file with several names counts once.

    Attributes:
        bytes: of all entries so far.
    """

    def __init__(self) -> None:
        self.bytes = 0
        # Of files with several names, by device and inode: bytes and names, and names counted here.
        self._linked: dict[tuple[int, int], tuple[int, int]] = {}
        self._counted: Counter[tuple[int, int]] = Counter()

    def add(self, found: os.stat_result) -> None:
        """Count an entry, as ``lstat`` shows it."""
        # POSIX counts blocks of 512 bytes, whatever those of the file system are.
        taken = found.st_blocks * 512
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            file = found.st_dev, found.st_ino
            self._counted[file] += 1
            if file in self._linked:
                return
            self._linked[file] = taken, found.st_nlink
        self.bytes += taken

    def include(self, other: DiskUse) -> int:
        """Count what another one has counted elsewhere; returns the bytes that this has added."""
        known = other._linked.keys() & self._linked.keys()
        added = other.bytes - sum(other._linked[file][0] for file in known)
        self.bytes += added
        self._linked.update(other._linked)
        self._counted.update(other._counted)
        return added

    @property
    def freed(self) -> int:
        """Bytes that are free once all entries are deleted: not of files with other names."""
        files = self._linked.items()
        return self.bytes - sum(
            taken for file, (taken, names) in files if self._counted[file] < names
        )


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


def use_of(path: Path) -> DiskUse:
    """What a file, or a folder with all that is in it, takes on the disk.

    Raises:
        OSError: there is none.
    """
    use = DiskUse()
    use.add(path.lstat())
    for _, found in entries_below(path) if not path.is_symlink() else ():
        use.add(found)
    return use


def size(count: float) -> str:
    """Bytes as a person would say them: ``12 kB``, ``3.4 GB``."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.{1 if count < 9.95 else 0}f} {unit}"
    return f"{count / 1000:.1f} TB"
