"""What a decoder process does: takes videos, gives clips in shared memory; without torch."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import mmap
import os
import signal
from collections.abc import Callable
from multiprocessing import connection, reduction
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils.progress import Stopwatch
from cosmos_hpc.worker.video.clips import Cut, VideoError, read_clips

#: Bytes before the slots, for a counter of every decoder.
_HEADER = 1 << 16
#: How many decoders there is a counter for.
MAX_DECODERS = _HEADER // 8


class Slots:
    """Clips in memory that processes share: an unnamed file, gone with the last of them.

    Attributes:
        clips: uint8 ``[3, T, H, W]``, one per slot.
        ticks: int64, a counter for each decoder.
        memory: all of it, uint8.
    """

    def __init__(self, count: int, shape: tuple[int, ...], fd: int | None = None) -> None:
        size = math.prod(shape)
        self._arguments = (count, shape)
        self._fd = os.memfd_create("clips") if fd is None else fd
        total = _HEADER + count * size
        if fd is None:
            os.ftruncate(self._fd, total)
        self.memory = np.frombuffer(mmap.mmap(self._fd, total), np.uint8)
        self.ticks = self.memory[:_HEADER].view(np.int64)
        self.clips = self.memory[_HEADER:].reshape(count, *shape)

    def __reduce__(self) -> tuple[Callable[..., Slots], tuple[Any, ...]]:
        return _attach, (*self._arguments, reduction.DupFd(self._fd))

    def close(self) -> None:
        """Give the file back; the arrays stay good for those that still hold them."""
        os.close(self._fd)


def _attach(count: int, shape: tuple[int, ...], shared: Any) -> Slots:
    return Slots(count, shape, shared.detach())


def serve(pipe: connection.Connection, slots: Slots, number: int, cut: Cut) -> None:
    """Answer the videos that come through the pipe with their clips, until it is closed.

    Args:
        pipe: takes ``(path, begin, mark, span)``, as :func:`read_clips` has them, and the numbers
            of slots that were asked for. Gives ``ready``, ``slot`` (one is wanted), ``clip`` (slot,
            clip without pixels, seconds of each activity) and ``end`` (None or an error).
        slots: where clips go.
        number: of this decoder: which counter to raise with every frame.
        cut: which clips of the videos.
    """
    prepare_process()
    held: int | None = None

    def place() -> np.ndarray:
        nonlocal held
        if held is None:
            pipe.send(("slot",))
            held = pipe.recv()
        return slots.clips[held]

    def tick() -> None:
        slots.ticks[number] += 1

    # Ends when the other side is gone.
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send(("ready",))
        while True:
            path, begin, mark, span = pipe.recv()
            clock = Stopwatch()
            error: Exception | None = None
            try:
                for clip in read_clips(path, cut, begin, mark, place, clock, tick, span):
                    said = dataclasses.replace(clip, pixels=np.empty(0, np.uint8))
                    slot, held = held, None
                    pipe.send(("clip", slot, said, dict(clock.seconds)))
                    clock.seconds.clear()
            except (EOFError, ConnectionError, MemoryError):
                raise
            except Exception as e:
                error = e
            pipe.send(("end", _portable(error)))


def _portable(error: Exception | None) -> Exception | None:
    """An error that the other process can read: a video's, or the machine's."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    if error is None or isinstance(error, VideoError | WorkError):
        return error
    return VideoError("unreadable", f"not a readable video: {type(error).__name__}: {error}")


def prepare_process() -> None:
    """Make this process end with its parent, and be killed first when memory runs out."""
    # The one that started this one decides when it ends, and takes it along when it dies.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    # Where memory runs out, Linux ends this process first and not the one that keeps the journal.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
