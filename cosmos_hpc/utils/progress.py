"""Progress as lines that read well in a log file, or a bar in a notebook; where the time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from cosmos_hpc.utils.notebook import Output, in_notebook, progress_line

T = TypeVar("T")


def say(message: str) -> None:
    """Print a line with the time, without buffering."""
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


class Progress:
    """Says how far a count is: at most a line every few seconds, and one at the end.

    In a notebook it is a bar instead.

    Args:
        what: beginning of each line.
        total: the count at the end.
        done: where an earlier attempt stopped; not counted in the rate.
        every: seconds between lines.
    """

    def __init__(self, what: str, total: int, done: int = 0, every: float = 10.0) -> None:
        self.what, self.total, self.done, self.every = what, total, done, every
        self._first, self._start = done, time.monotonic()
        self._said = self._start
        self._output = Output() if in_notebook() else None
        if self._output:
            self.every = min(every, 1.0)

    def update(self, done: int, note: str = "") -> None:
        """Note the count; prints when it is time to."""
        self.done = done
        now = time.monotonic()
        if done < self.total and now - self._said < self.every:
            return
        self._said = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = (
            f", {duration((self.total - done) / rate)} left" if rate and done < self.total else ""
        )
        text = f"{self._counts(rate)}{left}{', ' + note if note else ''}"
        if self._output:
            fraction = done / self.total if self.total else 1.0
            self._output.draw(progress_line(self.what, text, fraction), f"{self.what} {text}")
        else:
            say(f"{self.what} {text}")

    def _counts(self, rate: float) -> str:
        return f"{self.done}/{self.total}, {rate:.2f}/s"


class ByteProgress(Progress):
    """Progress of a transfer: the count is of bytes."""

    def _counts(self, rate: float) -> str:
        return f"{self.done / 1e9:.2f}/{self.total / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s"


def counted(
    items: Iterable[T], total: int, what: str, note: Callable[[str], None], every: float = 15.0
) -> Iterator[T]:
    """The items as they come; ``note`` is called every ``every`` seconds with their number."""
    said = time.monotonic()
    for number, item in enumerate(items):
        if (now := time.monotonic()) - said >= every:
            said = now
            note(f"{number} of {total} {what}")
        yield item


class Stopwatch:
    """Seconds by activity; each lap charges the time since the last one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, activity: str) -> None:
        """Charge the time since the last lap to ``activity``."""
        now = time.perf_counter()
        self.seconds[activity] += now - self._last
        self._last = now


def count_of(count: int, noun: str) -> str:
    """A count with its noun: ``1 shard``, ``2 shards``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """Seconds as a person would say them: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def gigabytes(size: int) -> str:
    """Bytes as GB with two significant digits."""
    return f"{size / 1e9:.2g} GB" if size < 100e9 else f"{size / 1e9:,.0f} GB"
