"""Prepares one shard of videos: tokens in Megatron's indexed format."""

from __future__ import annotations

import collections
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.sections import Data
from cosmos_hpc.data.bridge import AnnotationError
from cosmos_hpc.data.shards import publish_shard
from cosmos_hpc.errors import Stopped, WorkError
from cosmos_hpc.runs.fetched import tokenizer_folder
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.in_flight import InFlight
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import Progress, Stopwatch, count_of, say
from cosmos_hpc.worker.datasets.index import write_index
from cosmos_hpc.worker.datasets.journal import ID_DTYPE, Journal, in_order
from cosmos_hpc.worker.tokenizers.video import Encoding, VideoTokenizer
from cosmos_hpc.worker.video.clips import Clip, Cut, VideoError
from cosmos_hpc.worker.video.decoders import (
    MAX_DEATHS,
    Decoded,
    DecodeJob,
    Decoders,
    Event,
    InThisProcess,
)
from cosmos_hpc.worker.video.spans import Span

#: Seconds after which finished clips are written to the disk, also when they are few.
_WRITE_EVERY = 10.0
#: Seconds between looks for a request to stop, at least.
_LOOK_EVERY = 1.0
#: Clips that are given to a GPU beyond those it encodes at the same time.
_SPARE = 2


def cut_of(data: Data) -> Cut:
    """Which clips of its videos a recipe wants."""
    return Cut(
        frames=data.frames,
        height=data.height,
        width=data.width,
        every=data.clips == "all",
        start=data.start,
        frame_rate=data.frame_rate,
        stride=data.stride,
        pad=data.short_videos == "pad",
    )


class VideoShard:
    """Prepares one shard: from videos to tokens.

    Attributes:
        document: what each of its documents holds, in a word.
        cut: which clips of its videos are wanted.
    """

    document = "clip"

    def __init__(self, run: RunFolder, recipe: Recipe, shard: int, journal: Journal) -> None:
        self.run, self.data, self.shard, self.journal = run, recipe.data, shard, journal
        self.cut = cut_of(recipe.data)
        self.clock = Stopwatch()
        self.root, self.first, rows = run.data.of_shard(shard)
        self.videos = [row.get("video", row["path"]) for row in rows]
        self._pinned = dict(enumerate(rows, self.first))
        begun = journal.finished()
        self.in_flight = InFlight(
            run.tokens.in_flight(shard), {index: clips for index, (clips, _) in begun.items()}
        )
        self._rows: list[tuple[dict[str, Any], np.ndarray]] = []
        self._written = self._looked = time.monotonic()
        ended = journal.ended()
        self._progress = Progress(f"shard {shard}: videos", len(self.videos), len(ended))
        self._failed = sum("error" in row for row in journal.rows)
        if journal.rows:
            clips = sum(row["clips"] for row in journal.rows)
            say(
                f"shard {shard}: {len(ended)} of {count_of(len(self.videos), 'video')} were "
                f"finished before, and {count_of(clips, self.document)} in all"
            )
        self._clips = collections.Counter({index: clips for index, (clips, _) in begun.items()})
        self._jobs = [
            DecodeJob(index, self.root / row["path"], *begun.get(index, (0, None)), Span.of(row))
            for index, row in self._pinned.items()
            if index not in ended
        ]

    def fill(self) -> None:
        """Decode and encode what is missing, and keep the journal."""
        if not self.root.is_dir():
            # Every video would count as gone, for good.
            raise WorkError(f"data.input={self.root} is not there; is its file system mounted?")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        at_once, jobs = _encodings_at_once(self.data, device), self._not_given_up()
        count = _decoders(self.data, device)
        decoders: Decoders | InThisProcess
        if count and jobs:
            decoders = Decoders(jobs, self.cut, count, count + at_once + 2, self.in_flight)
        else:
            decoders = InThisProcess(jobs, self.cut, self.in_flight)
        try:
            # They start while the tokenizer is loaded.
            with decoders:
                shape = self.data.latent_shape
                tokenizer = VideoTokenizer(
                    tokenizer_folder(self.run), shape, device, self.data.batch_size
                )
                if isinstance(decoders, Decoders):
                    tokenizer.pin(decoders.slots.memory)
                self.clock.lap("load")
                try:
                    self._drain(decoders, tokenizer, at_once)
                finally:
                    tokenizer.unpin()
        finally:
            # Killed, this is not reached, and the note stays.
            self.in_flight.close()
        self._write()
        self._say_what_limits()

    def _not_given_up(self) -> list[DecodeJob]:
        """What is to be decoded, suspects first; those that killed workers are listed as failed."""
        deaths = self.in_flight.deaths
        left = []
        for job in self._jobs:
            pinned = self._pinned[job.index]
            job.suspect = job.index in deaths
            if deaths.get(job.index, 0) >= MAX_DEATHS:
                reason = f"{deaths[job.index]} workers died while decoding it, the last one alone"
                self._end(job.index, VideoError("killed_worker", reason))
            elif "error" in pinned:
                # Refused before it is opened, for what goes with it.
                self._end(job.index, VideoError(pinned["error"], pinned["reason"]))
            else:
                left.append(job)
        return sorted(left, key=lambda job: (not job.suspect, job.index))

    def _drain(
        self, decoders: Decoders | InThisProcess, tokenizer: VideoTokenizer, at_once: int
    ) -> None:
        """Take what the decoders give, keep the tokenizer busy, and write what it gives."""
        under_way: collections.deque[tuple[Event, Encoding | None]] = collections.deque()
        encodings, more = 0, True
        while more or under_way:
            event = None
            if more and encodings < at_once:
                event = decoders.get(wait=not under_way, seconds=_LOOK_EVERY)
                more = not decoders.over
                # While others are encoded, what the next one takes is no time lost.
                self.clock.lap("tokenize" if under_way else "wait")
            if isinstance(event, Decoded):
                self._count(event.seconds)
                under_way.append((event, tokenizer.start(event.clip.pixels)))
                encodings += 1
            elif event is not None:
                under_way.append((event, None))
            elif under_way:
                # A GPU that could take more than there are waits too, though it is not idle.
                lacks = more and encodings < at_once - _SPARE
                event, encoding = under_way.popleft()
                if isinstance(event, Decoded) and encoding is not None:
                    ids = encoding.ids().flatten().numpy()
                    encodings -= 1
                    decoders.release(event.slot)
                    self._keep(event.index, event.clip, ids)
                elif not isinstance(event, Decoded):
                    self._end(event.index, event.error)
                self.clock.lap("wait" if lacks else "tokenize")
            self._write_when_due()

    def _count(self, seconds: dict[str, float]) -> None:
        for activity in ("decode", "resize"):
            self.clock.seconds[activity] += seconds.get(activity, 0.0)

    def _keep(self, index: int, clip: Clip, ids: np.ndarray) -> None:
        self._clips[index] += 1
        row = {
            **self._row(index),
            **self._split_of(index),
            "clip": clip.number,
            "time": clip.time,
            "seconds": clip.seconds,
            "padded": clip.padded,
            "rotated": clip.rotated,
            **clip.notes,
            "mark": clip.mark,
        }
        self._rows.append((row, ids[None]))

    def _end(self, index: int, error: VideoError | AnnotationError | None) -> None:
        row = {**self._row(index), "last": True}
        if error is not None:
            row |= {"error": error.kind, "reason": str(error), "kept": self._clips[index]}
            self._failed += 1
            say(f"failed: {row['video']!r}: {error}")
        self._rows.append((row, np.empty((0, self.data.ids_per_clip), ID_DTYPE)))

    def _row(self, index: int) -> dict[str, Any]:
        return {"index": index, "video": self.videos[index - self.first]}

    def _split_of(self, index: int) -> dict[str, Any]:
        """What decides, beside its name, to which part of the data a video goes."""
        row = self._pinned[index]
        return {key: row[key] for key in ("part", "group") if key in row}

    def _write_when_due(self) -> None:
        now = time.monotonic()
        late = now - self._written > _WRITE_EVERY
        if len(self._rows) >= self.data.batch_size or (self._rows and late):
            self._write()
        elif now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        if self.run.stop_requested():
            self._write()
            done, total = self._progress.done, self._progress.total
            raise Stopped(f"stopped after {done} of {count_of(total, 'video')}")

    def _write(self) -> None:
        self.journal.append(self._rows)
        self._progress.update(
            self._progress.done + sum("last" in row for row, _ in self._rows),
            f"{self._failed} failed" if self._failed else "",
        )
        self._rows, self._written = [], time.monotonic()
        self.clock.lap("write")

    def _say_what_limits(self) -> None:
        waited, busy = self.clock.seconds["wait"], self.clock.seconds["tokenize"]
        if waited + busy:
            share = waited / (waited + busy)
            what = "decoding" if share > 0.1 else "the tokenizer"
            say(f"{what} limits: the tokenizer waited {share:.0%} of the time for clips")

    def publish(self) -> None:
        """Write the shard under a temporary name, then rename it."""
        final = self.run.tokens.shard(self.shard)
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        rows = sorted(self.journal.rows, key=in_order)
        clips = [_published(row) for row in rows if row["clips"]]
        failed = [_published(row) for row in rows if "error" in row]
        write_documents(temporary / "tokens", self.journal.documents())
        files.write_jsonl(temporary / "clips.jsonl", clips)
        files.write_jsonl(temporary / "failed.jsonl", failed)
        self.clock.lap("write")
        documents = sum(row["clips"] for row in clips)
        marker = {
            "shard": self.shard,
            "videos": len(self.videos),
            "clips": documents,
            "failed": len(failed),
            "padded": sum(bool(row["padded"]) for row in clips),
            "ids_per_clip": self.journal.ids_per_clip,
            "sha256": {p.name: files.sha256(p) for p in sorted(temporary.iterdir())},
            "seconds": {k: round(v, 3) for k, v in self.clock.seconds.items()},
        }
        publish_shard(temporary, final, marker, marker_path(self.run, "finalize"))
        say(
            f"shard {self.shard} is complete: {count_of(documents, self.document)}, "
            f"{count_of(len(failed), 'video')} failed"
        )


def _decoders(data: Data, device: str) -> int:
    """Decoder processes: as many as this task has cores, one of which drives the GPU."""
    if data.decoders is not None:
        return data.decoders
    cores = len(os.sched_getaffinity(0))
    # How many threads a task may have where several share the cores, and how many cores of the node
    # a job was given: not every cluster confines it to them.
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_ON_NODE"):
        number = os.environ.get(name, "")
        if number.isdecimal() and int(number):
            cores = min(cores, int(number))
    return max(1, cores - 1) if device == "cuda" else cores


def _encodings_at_once(data: Data, device: str) -> int:
    """Clips that are given to the tokenizer before the first one's tokens are read."""
    # More than it has streams: when one has finished, the next clip is there.
    return data.batch_size + _SPARE if device == "cuda" else 1


def _published(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the journal without what only the journal needs."""
    kept = {"clips": row["kept"]} if "kept" in row else {}
    hidden = ("crc", "mark", "last", "kept")
    return {key: value for key, value in row.items() if key not in hidden} | kept


def write_documents(prefix: Path, clips: Iterable[np.ndarray]) -> None:
    """Write ``PREFIX.bin`` and ``PREFIX.idx``, one document per row of ``clips``."""
    lengths = []
    with open(f"{prefix}.bin", "wb") as f:
        for clip in clips:
            f.write(clip.astype(ID_DTYPE).tobytes())
            lengths.append(clip.size)
    write_index(Path(f"{prefix}.idx"), np.array(lengths, np.int64))
