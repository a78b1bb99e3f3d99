"""Which files of a folder are videos, in an order that every run repeats."""

from __future__ import annotations

import os
from pathlib import Path

from cosmos_hpc.errors import RequestError

EXTENSIONS = (".mp4", ".mov", ".mkv", ".avi", ".webm")


def list_videos(folder: str) -> list[str]:
    """Paths of the videos below ``folder``, relative to it and sorted.

    Links to folders are followed, each real folder once. Names that are not UTF-8 keep their bytes
    through surrogate escapes.

    Raises:
        RequestError: the folder does not exist, cannot be read or holds no video.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise RequestError(f"data.input={folder} {what}; give the folder that holds the videos")
    if not os.access(root, os.R_OK | os.X_OK):
        raise RequestError(f"data.input={folder} cannot be read; check its permissions")
    videos: list[str] = []
    others = 0
    seen: set[tuple[int, int]] = set()
    for path, folders, files in os.walk(root, followlinks=True):
        status = Path(path).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in files:
            if name.lower().endswith(EXTENSIONS):
                videos.append(os.path.relpath(os.path.join(path, name), root))
            else:
                others += 1
    if not videos:
        raise RequestError(
            f"data.input={folder} holds no video: none of its {others} files ends in "
            f"{', '.join(EXTENSIONS)}"
        )
    return sorted(videos)
