"""Hard links, and copies where there are none."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import threading
from pathlib import Path


class Links:
    """Gives files further names that take no space; copies where the file system has no links.

    Threads may share one.
    """

    def __init__(self) -> None:
        self._current: dict[Path, Path] = {}
        self._lock = threading.Lock()

    def link(self, source: Path, target: Path) -> None:
        """Make ``target`` a hard link of ``source``, or a copy, unless it is one already."""
        if target.exists() and (
            source.samefile(target) or filecmp.cmp(source, target, shallow=False)
        ):
            return
        target.unlink(missing_ok=True)
        with self._lock:
            current = self._current.get(source, source)
        try:
            os.link(current, target)
        except OSError as e:
            if e.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV):
                raise
            shutil.copyfile(source, target)
            if e.errno == errno.EMLINK:
                # The file has all the names it may have (65 000 on ext4); the copy takes the next.
                with self._lock:
                    self._current[source] = target
