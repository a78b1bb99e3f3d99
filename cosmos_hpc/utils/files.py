"""Files that are complete or absent: atomic writes, append-only journals, locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from cosmos_hpc.errors import WorkError

#: Small files that are read or flushed at a time.
THREADS = 8


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; at the end of the block it is flushed to the disk and named ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write ``path`` so that a reader sees the old content or all of the new."""
    with replacing(path) as f:
        f.write(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON written by :func:`write_json`; None where the file does not exist.

    Raises:
        WorkError: it is not JSON any more: the disk, or somebody's editor, has damaged it.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        raise WorkError(
            f"{path} is damaged, it is not JSON; delete it and run the same command again"
        ) from None


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with replacing(path) as f:
        f.writelines(json.dumps(row).encode() + b"\n" for row in rows)


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Add a line, after cutting off half a line that a killed writer may have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as f:
        size = f.seek(0, os.SEEK_END)
        if size:
            f.seek(0)
            f.truncate(f.read().rfind(b"\n") + 1)
        f.write(json.dumps(row).encode() + b"\n")


def iterate_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file's lines, up to the first incomplete line; none without a file.

    A journal whose writer was killed may end in half a line, which counts as not written.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as f:
        for line in f:
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                return
            yield row


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All of :func:`iterate_jsonl`."""
    return list(iterate_jsonl(path))


def last_rows(path: Path, tail: int = 1 << 16) -> list[dict[str, Any]]:
    """The complete rows at the end of a file, which may be long."""
    if not path.exists():
        return []
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - tail))
        lines = f.read().splitlines(keepends=True)
    rows = []
    for line in lines:
        # Cut at the beginning of the tail, or being written: not complete.
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def names_in(folder: Path) -> set[str]:
    """Names of all that is in a folder; none where there is no such folder."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest of the folders above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def file_in_place_of(folder: Path) -> Path | None:
    """The file that stands where a folder, or one of those above it, would have to be."""
    nearest = nearest_existing(folder)
    return None if nearest.is_dir() else nearest.absolute()


def publish(temporary: Path, final: Path) -> None:
    """Rename a finished file or folder to its final name, all of it on the disk first.

    Replaces a folder that an earlier attempt left at ``final`` without its completion marker.
    """
    # Several at a time: each waits for a network file system.
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fsync_path, [*temporary.rglob("*"), temporary]):
            pass
    if final.is_dir():
        shutil.rmtree(final)
    temporary.rename(final)
    fsync_path(final.parent)


#: How a file system says that it has no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def without_locks(path: Path) -> WorkError:
    """What to say of a folder, or a file in it, whose file system has no locks."""
    return WorkError(
        f"{path} is on a file system without locks (flock), which keep two processes from the same "
        f"work; choose another place with cluster.runs=DIR, or have it mounted with them"
    )


#: Somebody who asks whether a lock is held holds it for a moment.
_PROBE_SECONDS = 1.0


@contextlib.contextmanager
def lock(
    path: Path, on_wait: Callable[[str], None] | None = None, note: str = ""
) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` during the block; the kernel frees it with the process.

    Args:
        on_wait: called once, with who holds the lock, before waiting for it. None: do not wait.
        note: is written into the file after who holds the lock, and stays there.

    Raises:
        BlockingIOError: the lock is held and ``on_wait`` is None; the message says by whom.
        WorkError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as f:
        told, deadline = False, time.monotonic() + _PROBE_SECONDS
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                f.seek(0)
                holder = f.readline().strip() or "another process"
                if time.monotonic() > deadline:
                    if on_wait is None:
                        raise BlockingIOError(holder) from None
                    if not told:
                        on_wait(holder)
                        told = True
                time.sleep(0.1)
            except OSError as e:
                if e.errno in _NO_LOCKS:
                    raise without_locks(path.parent) from None
                raise
        f.truncate(0)
        f.write(f"{_this_process()}\n{note}")
        # At once also on a network file system: its time tells since when the lock is held.
        f.flush()
        os.fsync(f.fileno())
        yield


def lock_holder(path: Path) -> str | None:
    """Who holds :func:`lock` on ``path``; None where nobody does."""
    if not is_locked(path):
        return None
    return path.read_text().partition("\n")[0] or "another process"


def is_locked_here(path: Path) -> bool:
    """Whether this process holds :func:`lock` on ``path``."""
    return lock_holder(path) == _this_process()


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def is_locked(path: Path) -> bool:
    """Whether a living process holds :func:`lock` on ``path``.

    Raises:
        WorkError: the file system has no locks.
    """
    try:
        # To read: others may look at a run that only its owner can write to.
        with open(path) as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as e:
        if e.errno in _NO_LOCKS:
            raise without_locks(path.parent) from None
        return True
    return False
