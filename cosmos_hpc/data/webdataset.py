"""Tar shards of the WebDataset convention, whose videos are read where they lie.

Files of a sample have one name up to the first dot of its last part: ``0001.mp4`` is the video,
``0001.json`` or ``0001.txt`` say what it shows.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

from cosmos_hpc.data.lists import EXTENSIONS
from cosmos_hpc.data.videos import matching_files
from cosmos_hpc.data.wanted import Note, Row, Wanted
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import counted

ENDING = ".tar"
#: Keys of a sample's JSON that may hold its prompt, in this order.
PROMPT_KEYS = ("prompt", "caption", "text")
#: A longer text is no description of a video.
_LONGEST_TEXT = 1 << 20
#: How compressed files begin.
_COMPRESSED = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ", "zstd": b"\x28\xb5\x2f\xfd"}
#: Bytes that are read at a time: some heads and texts, and little of a video. Python's own choice
#: is the block of the file system, which may be megabytes.
_BUFFER = 1 << 14


def is_webdataset(source: str) -> bool:
    """Whether a file or pattern names tar shards."""
    return source.endswith(ENDING) and not os.path.isdir(source)  # noqa: PTH112


def list_samples(wanted: Wanted, note: Note) -> tuple[str, list[Row]]:
    """The videos of tar shards, in the order of the shards and of what they hold.

    Of each shard the heads of its members are read, and the texts that go with videos.

    Returns:
        The folder that paths are relative to, and one row per video with ``path`` (the shard),
        ``video`` (``SHARD/NAME``), ``offset`` and ``size``, and where it has one ``prompt``; of a
        shard that cannot be read to its end a row with ``error`` and ``reason``.

    Raises:
        RequestError: there is no such shard, or none of them holds a video.
    """
    root, names, _ = matching_files(wanted.input, (ENDING,))

    def read(name: str) -> list[Row]:
        return list(_samples(root, name))

    with ThreadPoolExecutor(files.THREADS) as pool:
        each = counted(pool.map(read, names), len(names), "shards read", note)
        rows = [row for found in each for row in found]
    if all("error" in row for row in rows):
        why = f"; {rows[0]['path']}: {rows[0]['reason']}" if rows else ""
        raise RequestError(
            f"data.input={wanted.input} holds no video: no member of its {len(names)} shards ends "
            f"in {', '.join(EXTENSIONS)}{why}"
        )
    return root, rows


def _samples(root: str, shard: str) -> Iterator[Row]:
    """The videos of a shard; a member belongs to the sample before it as long as names agree."""
    videos: list[Row] = []
    said: dict[str, str] = {}
    sample = ""
    try:
        with open(os.path.join(root, shard), "rb", buffering=_BUFFER) as file:
            for path, offset, size in regular_files(file):
                name, dot, kind = _name(path)
                if name != sample:
                    yield from _whole(shard, sample, videos, said)
                    videos, said, sample = [], {}, name
                if f"{dot}{kind}".lower().endswith(EXTENSIONS):
                    where = {"offset": offset, "size": size}
                    videos.append({"path": shard, "video": f"{shard}/{path}", **where})
                elif kind in ("json", "txt") and size <= _LONGEST_TEXT:
                    file.seek(offset)
                    said[kind] = file.read(size).decode("utf-8", "replace")
    except OSError as e:
        reason = e.strerror or str(e)
        yield {"path": shard, "error": "unreadable", "reason": f"it cannot be read: {reason}"}
        return
    except tarfile.TarError as e:
        yield from _whole(shard, sample, videos, said)
        yield {"path": shard, "error": "unreadable", "reason": f"it is not a complete tar: {e}"}
        return
    yield from _whole(shard, sample, videos, said)


def regular_files(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, place of the first byte, and size of each regular file in a tar.

    Heads of usual files are read here, many times faster than by the standard library, which reads
    all others: those of long names, large sizes, folders, links, old formats.

    Raises:
        tarfile.TarError: the tar is damaged or cut there; what comes before has been given.
    """
    begins = file.read(8)
    if compression := next((name for name, b in _COMPRESSED.items() if begins.startswith(b)), None):
        raise tarfile.ReadError(f"it is compressed with {compression}; decompress it")
    file.seek(0)
    there, at = os.fstat(file.fileno()).st_size, 0
    tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the caller closes the file
    while True:
        file.seek(at)
        # Defaults that a tar gives for all that follows may be of any kind.
        usual = None if tar.pax_headers else _usual(file.read(tarfile.BLOCKSIZE))
        if usual:
            begin = at + tarfile.BLOCKSIZE
            at = begin - usual[1] // -tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            yield usual[0], begin, usual[1]
        else:
            file.seek(at)
            member = _member(tar)
            if member is None:
                return
            if member.isreg():
                yield member.name, member.offset_data, member.size
            if tar.offset <= at:
                raise tarfile.ReadError("a head with an impossible size")
            at = tar.offset
        if at > there:
            raise tarfile.ReadError("it ends within a file")


def _member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The member that begins where a tar is read; None at its end.

    ``TarFile.next`` takes damage for the end.
    """
    try:
        member = tarfile.TarInfo.fromtarfile(tar)
    except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        return None
    except ValueError as e:
        raise tarfile.ReadError(str(e)) from None
    if member.issparse():
        raise tarfile.ReadError(f"{member.name} is stored with holes; pack it without --sparse")
    return member


def _usual(head: bytes) -> tuple[str, int] | None:
    """Name and size in the head of a usual file; None in any other head."""
    # A regular file, in the format of POSIX or GNU, whose name needs no second field.
    if head[156:157] != b"0" or head[257:262] != b"ustar" or head[345:346] != b"\0":
        return None
    try:
        size, said = (int(head[i:j].rstrip(b" \0"), 8) for i, j in ((124, 136), (148, 156)))
    except ValueError:
        return None
    # The sum of all bytes, with blanks in its own place. The lower half of Adler-32 is one more,
    # modulo 65521, and computed many times faster than Python adds.
    summed = zlib.adler32(head[:148] + b"        " + head[156:]) & 0xFFFF
    if size < 0 or summed != (said + 1) % 65521:
        return None
    return os.fsdecode(head[:100].partition(b"\0")[0]), size


def _name(member: str) -> tuple[str, str, str]:
    """Name of a member's sample, and what follows the first dot."""
    folder, name = os.path.split(member)
    first, dot, kind = name.partition(".")
    return os.path.join(folder, first), dot, kind


def _whole(shard: str, sample: str, videos: list[Row], said: dict[str, str]) -> Iterator[Row]:
    """The videos of a sample that has been read."""
    more = {"prompt": prompt} if (prompt := _prompt(said)) else {}
    if len(videos) > 1:
        # Views of one scene are not to be in the training and the validation data.
        more["group"] = f"{shard}/{sample}"
    for row in videos:
        yield row | more


def _prompt(said: dict[str, str]) -> str | None:
    try:
        value: Any = json.loads(said["json"]) if "json" in said else {}
    except (ValueError, RecursionError):
        value = {}
    named = [value[key] for key in PROMPT_KEYS if key in value] if isinstance(value, dict) else []
    texts = [text for text in (*named, said.get("txt")) if isinstance(text, str) and text.strip()]
    # A lone surrogate, which JSON can write, is no text.
    return texts[0].strip().encode("utf-8", "replace").decode() if texts else None
