"""The part of a file that is a video: all of it, some seconds, some bytes, or some rows."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

#: A frame counts as shown at a moment that lies so much before it: containers round times.
TOLERANCE = Fraction(1, 1000)
#: Denominator of times and rates, which are written in decimals.
_FINEST = 1_000_000


@dataclass(frozen=True)
class Span:
    """A part of a file that is a video of its own; without any of these, all of the file.

    A row of the pinned list has the same names. Times of a video count from where its span begins.

    Attributes:
        start, end: seconds of the file; the frames that begin between them are the video.
        rate: frames per second, where they are known to be constant: frames then belong to the span
            in which the greater part of them lies, however their times were rounded.
        frames: that the video has at that rate, as its source says; None: it does not.
        offset, size: bytes of the file, such as those of a member of a tar.
        column, episode: the file is Parquet, with a picture in this column of each row of this
            ``episode_index``.
    """

    start: float = 0.0
    end: float | None = None
    rate: float | None = None
    frames: int | None = None
    offset: int = 0
    size: int | None = None
    column: str | None = None
    episode: int | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Span:
        """The span that a row of the pinned list names."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: row[name] for name in names if name in row})

    @property
    def slack(self) -> Fraction:
        """How much before ``start`` or ``end`` a frame may begin and count as beginning there."""
        return 1 / (2 * exact(self.rate)) if self.rate else TOLERANCE

    @property
    def first(self) -> Fraction:
        """Seconds of the file at which the video begins."""
        return exact(self.start)

    @property
    def last(self) -> Fraction | None:
        """Seconds of the file at which the video ends; None: where the file does."""
        return None if self.end is None else exact(self.end)

    @property
    def seconds(self) -> float | None:
        """Its length, as far as its source says so."""
        if type(self.frames) is int and self.rate:
            return max(0, self.frames) / self.rate
        return None if self.end is None else self.end - self.start

    def open(self, path: Path) -> BinaryIO:
        """The bytes of the video's file, or of the member of a tar that is one."""
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        if self.size is None:
            return file
        return cast(BinaryIO, io.BufferedReader(_Part(file, self.offset, self.size)))

    def bytes_of(self, path: Path) -> int:
        """How many bytes there are of them."""
        whole = path.stat().st_size
        return whole if self.size is None else max(0, min(self.size, whole - self.offset))


#: All of a file.
WHOLE = Span()


def exact(number: float) -> Fraction:
    """A number of seconds, or a rate, without the error of its binary form."""
    return Fraction(number).limit_denominator(_FINEST)


class _Part(io.RawIOBase):
    """Some bytes of a file, as if they were a file of their own."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        self._file.seek(self._offset + self._at)
        read = self._file.readinto(view) if view else 0  # type: ignore[attr-defined]
        self._at += read
        return int(read)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._at = place + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()
