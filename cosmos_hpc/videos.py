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
        RequestError: the folder does not exist, it or one in it cannot be read, or it holds no
            video.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise RequestError(f"data.input={folder} {what}; give the folder that holds the videos")
    videos: list[str] = []
    others = 0
    seen: set[tuple[int, int]] = set()
    folders = [""]
    try:
        while folders:
            inside = folders.pop()
            status = (root / inside).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / inside) as entries:
                # Sorted: which of two links to a folder counts must not follow from the disk.
                for entry in sorted(entries, key=lambda e: e.name, reverse=True):
                    name = os.path.join(inside, entry.name)
                    if entry.is_dir():
                        folders.append(name)
                    elif entry.is_file() and name.lower().endswith(EXTENSIONS):
                        videos.append(name)
                    else:
                        others += 1
    except OSError as e:
        raise RequestError(
            f"data.input={folder} cannot be read: {e.filename}: {e.strerror}"
        ) from None
    if not videos:
        raise RequestError(
            f"data.input={folder} holds no video: none of its {others} files ends in "
            f"{', '.join(EXTENSIONS)}"
        )
    return sorted(videos)
