"""What goes wrong with a video file, and whether it is the file's fault or the machine's."""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Iterator
from pathlib import Path

import av

from cosmos_hpc.errors import WorkError

#: The machine's trouble: the task stops, and the next one tries the video again.
_NOT_THE_VIDEO_S_FAULT = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


class VideoError(Exception):
    """A video that gives no clip, or no more of them.

    Attributes:
        kind: ``unreadable``, ``truncated``, ``short``, ``length``, ``missing``, ``too_large``
            or ``killed_worker``, for counting.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return VideoError, (self.kind, str(self))


def cannot_read(path: Path, error: BaseException) -> bool:
    """Whether it is the machine that cannot read a file now, whatever the file holds."""
    code = getattr(error, "errno", None)
    if code != errno.EIO:
        return code in _NOT_THE_VIDEO_S_FAULT
    # FFmpeg says so of some files that end too early as well. Those can be read.
    try:
        with open(path, "rb") as f:
            while f.read(1 << 20):
                pass
    except OSError:
        return True
    return False


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into a :class:`VideoError`.

    Raises:
        VideoError: the file is not a video that can be used; the message says why.
        WorkError: the machine cannot read now, whatever the file holds.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError("unreadable", "not a readable video: it is not a file")
        if not status.st_size:
            raise VideoError("unreadable", "not a readable video: the file is empty")
        yield
    except FileNotFoundError:
        raise VideoError("missing", "the file is not there") from None
    except PermissionError:
        raise VideoError("unreadable", "no permission to read the file") from None
    except (av.error.FFmpegError, OSError, ValueError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
        if cannot_read(path, e):
            raise WorkError(
                f"this machine cannot read {path}: {reason}; try again, and where it stays so, "
                "move the file away: it is then listed as missing"
            ) from None
        raise VideoError("unreadable", f"not a readable video: {reason}") from None
