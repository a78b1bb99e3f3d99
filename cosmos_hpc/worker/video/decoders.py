"""Decoding in separate processes, into memory shared with this one; without torch.

A decoder is a spawned process that has one video in flight at a time, so its death points at that
video and at no other. Clips come back in a fixed number of slots of shared memory: decoders that
are ahead wait for a free one.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.in_flight import InFlight
from cosmos_hpc.utils.progress import Stopwatch, say
from cosmos_hpc.worker.children import block_stops
from cosmos_hpc.worker.video.clips import Clip, Cut, VideoError, read_clips
from cosmos_hpc.worker.video.decoder import MAX_DECODERS, Slots, serve
from cosmos_hpc.worker.video.spans import WHOLE, Span

#: A decoder that gives no frame for so long is killed.
STALL_SECONDS = 300.0
#: Deaths on the same video, without a clip between them, after which it counts as failed.
MAX_DEATHS = 2
#: Decoders that end before they ask for work, without a clip from any other between them, after
#: which there is no use in more.
_MAX_BAD_STARTS = 3
_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class DecodeJob:
    """A video to decode.

    Attributes:
        index: of the video.
        path: of the file.
        begin: number of the first clip that is wanted.
        mark: of the clip before that, as :class:`~cosmos_hpc.worker.video.clips.Clip` has it.
        span: the part of the file that is the video.
        suspect: a worker died while it was in flight: it is decoded alone until it gives a clip.
        deaths: of decoders while they decoded it, since its last clip.
    """

    index: int
    path: Path
    begin: int = 0
    mark: int | None = None
    span: Span = WHOLE
    suspect: bool = False
    deaths: int = 0

    def gave(self, clip: Clip) -> None:
        """Note a clip: the next attempt resumes after it."""
        self.begin, self.mark = clip.number + 1, clip.mark
        self.suspect, self.deaths = False, 0


@dataclass(frozen=True)
class Decoded:
    """A clip of a video, whose pixels are good until its slot is released."""

    index: int
    clip: Clip
    slot: int | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class Finished:
    """A video gives no further clip, because it ended or for the reason in ``error``."""

    index: int
    error: VideoError | None


Event = Decoded | Finished


class _Decoder:
    """The near side of a decoder process."""

    def __init__(self, slots: Slots, number: int, cut: Cut) -> None:
        self.pipe, far = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=serve, args=(far, slots, number, cut), daemon=True)
        self.process.start()
        far.close()
        self.number = number
        self.job: DecodeJob | None = None
        self.slot: int | None = None
        self.ready = self.waits = self.stalled = False
        self._ticks, self._since = -1, time.monotonic()

    def stalls(self, ticks: int) -> bool:
        """Whether it has worked for long without a frame."""
        now = time.monotonic()
        if self.waits or self.job is None or ticks != self._ticks:
            self._ticks, self._since = ticks, now
        return now - self._since > STALL_SECONDS

    def end(self) -> int:
        """Kill it; returns the exit code, negative for a signal."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return int(self.process.exitcode or 0)


class Decoders:
    """Decodes videos in several processes; use as a context manager.

    A thread of its own hands out videos and slots, so that decoders continue while this process is
    busy with something else.

    Args:
        jobs: the videos; suspects first.
        cut: which clips of them.
        count: processes.
        slots: clips that may lie in memory at a time, more than ``count``.
        in_flight: records each video before it is decoded.

    Attributes:
        slots: the shared memory.
        over: whether all videos are finished, and nothing comes any more.
    """

    def __init__(
        self, jobs: Iterable[DecodeJob], cut: Cut, count: int, slots: int, in_flight: InFlight
    ) -> None:
        self._jobs, self._cut, self._in_flight = collections.deque(jobs), cut, in_flight
        self.slots = Slots(slots, (3, cut.frames, cut.height, cut.width))
        self._count = min(count, len(self._jobs), MAX_DECODERS)
        self._decoders: list[_Decoder] = []
        self._free = collections.deque(range(slots))
        self._released: collections.deque[int] = collections.deque()
        self._events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._near, self._far = _SPAWN.Pipe()
        self._closing = self.over = False
        self._bad_starts = 0
        self._thread = threading.Thread(target=self._run, name="decoders", daemon=True)

    def __enter__(self) -> Decoders:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._far.send(None)
        self._thread.join()
        self.slots.close()

    def get(self, wait: bool, seconds: float | None = None) -> Event | None:
        """The next event; None when all videos are finished (``over``), or when none is there.

        Args:
            wait: for one to come.
            seconds: how long at most.

        Raises:
            WorkError: decoders do not start, or the machine cannot read a file now.
        """
        if self.over:
            return None
        try:
            event = self._events.get(block=wait, timeout=seconds)
        except queue.Empty:
            return None
        self.over = event is None
        if isinstance(event, BaseException):
            raise event
        return event

    def release(self, slot: int | None) -> None:
        """Let a slot be filled again."""
        if slot is not None:
            self._released.append(slot)
            self._far.send(None)

    def _run(self) -> None:
        block_stops()
        try:
            self._decoders = [self._start(number) for number in range(self._count)]
            while not self._closing and (self._jobs or any(d.job for d in self._decoders)):
                self._hand_out()
                # The last videos of a shard are followed by none.
                self._in_flight.flush()
                ready = connection.wait([*(d.pipe for d in self._decoders), self._near], 1.0)
                if self._near in ready:
                    self._near.recv()
                for decoder in [d for d in self._decoders if d.pipe in ready]:
                    self._listen(decoder)
                for decoder in self._decoders:
                    if decoder.stalls(int(self.slots.ticks[decoder.number])):
                        decoder.stalled = True
                        self._replace(decoder)
            self._in_flight.flush()
            self._events.put(None)
        except BaseException as e:
            self._events.put(e)
        finally:
            for decoder in self._decoders:
                decoder.end()

    def _start(self, number: int) -> _Decoder:
        return _Decoder(self.slots, number, self._cut)

    def _hand_out(self) -> None:
        """Give free slots to decoders that wait for one, and videos to idle ones."""
        while self._released:
            self._free.append(self._released.popleft())
        for decoder in self._decoders:
            if decoder.waits and self._free:
                decoder.slot, decoder.waits = self._free.popleft(), False
                self._send(decoder, decoder.slot)
            if not decoder.ready or decoder.job or not self._jobs:
                continue
            at_work = [d.job for d in self._decoders if d.job]
            if at_work and (self._jobs[0].suspect or any(job.suspect for job in at_work)):
                continue
            job = decoder.job = self._jobs.popleft()
            self._in_flight.begin(job.index, job.begin)
            self._send(decoder, (job.path, job.begin, job.mark, job.span))

    def _send(self, decoder: _Decoder, message: object) -> None:
        # One that has just died is found at its pipe.
        with contextlib.suppress(ConnectionError):
            decoder.pipe.send(message)

    def _listen(self, decoder: _Decoder) -> None:
        try:
            kind, *said = decoder.pipe.recv()
        except (EOFError, ConnectionError):
            self._replace(decoder)
            return
        job = decoder.job
        if kind == "ready":
            decoder.ready, self._bad_starts = True, 0
        elif kind == "slot":
            decoder.waits = True
        elif kind == "clip" and job:
            slot, clip, seconds = said
            decoder.slot, self._bad_starts = None, 0
            self._in_flight.gave(job.index)
            job.gave(clip)
            clip = dataclasses.replace(clip, pixels=self.slots.clips[slot])
            self._events.put(Decoded(job.index, clip, slot, seconds))
        elif kind == "end" and job:
            decoder.job = None
            self._finish(job, said[0])

    def _finish(self, job: DecodeJob, error: Exception | None) -> None:
        self._in_flight.end(job.index)
        if error is not None and not isinstance(error, VideoError):
            raise error
        self._events.put(Finished(job.index, error))

    def _replace(self, decoder: _Decoder) -> None:
        """Replace a decoder that has died, or that has to be ended."""
        code = decoder.end()
        job, slot = decoder.job, decoder.slot
        if slot is not None:
            self._free.append(slot)
        if job is None:
            self._bad_starts += 1
            if self._bad_starts >= _MAX_BAD_STARTS:
                raise WorkError(f"decoders do not start: {_how(code)}; the log says why")
        else:
            job.deaths += 1
            how = f"no frame for {STALL_SECONDS:g} s" if decoder.stalled else _how(code)
            say(f"a decoder ended while decoding {job.path.name!r}: {how}")
            if job.deaths < MAX_DEATHS:
                self._jobs.append(job)
                self._in_flight.end(job.index)
            else:
                reason = f"its decoder ended {job.deaths} times in a row: {how}"
                self._finish(job, VideoError("killed_worker", reason))
        self._decoders[decoder.number] = self._start(decoder.number)


def _how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


class InThisProcess:
    """Decodes videos one after the other, when they are asked for; takes the place of Decoders."""

    def __init__(self, jobs: Iterable[DecodeJob], cut: Cut, in_flight: InFlight) -> None:
        self._events, self.over = self._run(jobs, cut, in_flight), False

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def get(self, wait: bool, seconds: float | None = None) -> Event | None:
        """The next event, however long it takes; None as there, and without ``wait``."""
        event = next(self._events, None) if wait else None
        self.over = wait and event is None
        return event

    def release(self, slot: int | None) -> None:
        """There are no slots."""

    def _run(self, jobs: Iterable[DecodeJob], cut: Cut, in_flight: InFlight) -> Generator[Event]:
        for job in jobs:
            in_flight.begin(job.index, job.begin)
            clock, error = Stopwatch(), None
            try:
                clips = read_clips(job.path, cut, job.begin, job.mark, clock=clock, span=job.span)
                for clip in clips:
                    in_flight.gave(job.index)
                    yield Decoded(job.index, clip, None, dict(clock.seconds))
                    clock.seconds.clear()
            except VideoError as e:
                error = e
            in_flight.end(job.index)
            in_flight.flush()
            yield Finished(job.index, error)
