"""How much of an encoder's speed is left when clips come from video files, on one GPU.

    python benchmarks/pipeline_gpu.py [--videos N] [--seconds S] [--size T,H,W] [overrides]

Writes an encoder of 100 million random parameters (``random_tokenizer.py``), and videos of 60
frames, H.264, as large as the clips. Then, in clips a second:

- the encoder alone, on clips that lie in the memory of the GPU as bf16, 1, 4, 8 and 16 a call;
- the encoder alone, 1 a call, on as many streams as the package uses (``data.batch_size``);
- the tokenizer alone: uint8 clips from pinned memory to ids on the CPU;
- the decoders alone, as many as there are cores less one;
- the package's preprocessing, from the files to the journal.

Prints the ratio of the last to the encoder alone, and what limits. A
video that is given several times must give the same ids each time (asserted). ``--size`` is that of
a clip, 33,640,1024; 1,480,640 with ``data.clips=all`` is the way of frames of robots. ``--tiny``
takes a small encoder for a try without a GPU.

Needs torch, PyAV, msgspec and PyYAML; ids are not joined into a data set, which is another stage.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cosmos_hpc.config.recipes import Recipe
    from cosmos_hpc.runs.folder import RunFolder
    from cosmos_hpc.runs.stages import marker_path
    from cosmos_hpc.worker.tokenizers.video import VideoTokenizer

# Decoders import this file: torch is left to the functions.


def write_scene(path: Path, seed: int, height: int, width: int) -> None:
    """60 frames that move forward through a texture, with grain, as from a car."""
    import av

    random = np.random.default_rng(seed)
    octaves = [random.integers(0, 90, (2 * height // k, 2 * width // k, 3)) for k in (64, 16, 4)]
    scene = sum(
        o.repeat(k, 0).repeat(k, 1)[: 2 * height - 64, : 2 * width - 64]
        for o, k in zip(octaves, (64, 16, 4), strict=True)
    )
    scene = np.asarray(scene).clip(0, 240).astype(np.uint8)
    grain = random.integers(0, 12, (4, height, width, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(60):
            top, left = t * (height // 80), t * (width // 100)
            picture = scene[top : top + height, left : left + width] + grain[t % 4]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def encoder_rate(
    tokenizer: VideoTokenizer, recipe: Recipe, batch: int, streams: int, seconds: float
) -> float:
    """Clips a second of the encoder on clips that are where it needs them."""
    import torch

    data, cuda = recipe.data, tokenizer.device.type == "cuda"
    shape = (batch, 3, data.frames, data.height, data.width)
    video = torch.rand(shape, device=tokenizer.device, dtype=torch.bfloat16) * 2 - 1
    under_way: collections.deque[Any] = collections.deque()
    places = itertools.cycle([torch.cuda.Stream() for _ in range(streams)] if cuda else [None])
    finish = torch.cuda.synchronize if cuda else lambda: None
    finish()

    def call() -> None:
        with torch.cuda.stream(next(places)):
            tokenizer._encoder(video)
            if cuda:
                # Always calls ahead, so that the GPU never waits for this loop.
                under_way.append(torch.cuda.Event())
                under_way[-1].record()
        if len(under_way) > streams + 1:
            under_way.popleft().synchronize()

    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return batch * _rate(call, seconds, finish)


def tokenizer_rate(
    tokenizer: VideoTokenizer, recipe: Recipe, at_once: int, seconds: float
) -> float:
    """Clips a second of the package's tokenizer on uint8 clips in pinned memory."""
    import torch

    data = recipe.data
    clips = np.random.default_rng(0).integers(
        0, 256, (5, 3, data.frames, data.height, data.width), np.uint8
    )
    tokenizer.pin(clips)
    under_way: collections.deque[Any] = collections.deque()
    chosen = itertools.cycle(clips)

    def call() -> None:
        under_way.append(tokenizer.start(next(chosen)))
        if len(under_way) == at_once:
            under_way.popleft().ids()

    cuda = tokenizer.device.type == "cuda"
    try:
        return _rate(call, seconds, torch.cuda.synchronize if cuda else lambda: None)
    finally:
        tokenizer.unpin()


def _rate(call: Callable[[], None], seconds: float, finish: Callable[[], None]) -> float:
    """Calls a second, after some that warm up."""
    for _ in range(12):
        call()
    finish()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        call()
        done += 1
    finish()
    return done / (time.perf_counter() - started)


def decoder_rate(run: RunFolder, recipe: Recipe, device: str) -> tuple[float, int]:
    """Clips a second of the decoders when nobody makes them wait, and how many they are."""

    from cosmos_hpc.runs.in_flight import InFlight
    from cosmos_hpc.worker.datasets.shard import _decoders, _encodings_at_once, cut_of
    from cosmos_hpc.worker.video.decoders import Decoded, DecodeJob, Decoders

    root, _, rows = run.data.of_shard(0)
    jobs = [DecodeJob(i, root / row["path"]) for i, row in enumerate(rows)]
    count = _decoders(recipe.data, device)
    slots = count + _encodings_at_once(recipe.data, device) + 2
    note = InFlight(run.path / "note.json", {})
    started, done = 0.0, 0
    with Decoders(jobs, cut_of(recipe.data), count, slots, note) as decoders:
        while (event := decoders.get(wait=True)) is not None:
            if isinstance(event, Decoded):
                decoders.release(event.slot)
                done += 1
                if done == slots:  # all have started, and all slots have been touched
                    started = time.perf_counter()
        rate = (done - slots) / (time.perf_counter() - started)
    note.close()
    return rate, count


def pipeline(run: RunFolder, recipe: Recipe, repeats: int) -> tuple[dict[str, float], int]:
    """Seconds of each activity of the package's way from files to the journal, and clips."""
    from cosmos_hpc.worker.datasets.journal import Journal, in_order
    from cosmos_hpc.worker.datasets.shard import VideoShard

    with Journal(run.tokens.journal(0), recipe.data.ids_per_clip) as journal:
        shard = VideoShard(run, recipe, 0, journal)
        shard.fill()
        clips = sum(row["clips"] for row in journal.rows)
        first: dict[tuple[int, int], np.ndarray] = {}
        lines = sorted((row for row in journal.rows if row["clips"]), key=in_order)
        for row, ids in zip(lines, journal.documents(), strict=True):
            same = first.setdefault((row["index"] % repeats, row["clip"]), ids)
            assert np.array_equal(same, ids), f"video {row['index']} has other ids this time"
        distinct = len(np.unique(np.stack(list(first.values()))))
        print(f"{len(lines)} clips of {len(first)}, same ids each time, {distinct} distinct")
    return dict(shard.clock.seconds), clips


def main(
    count: int, seconds: float, size: tuple[int, int, int], tiny: bool, overrides: list[str]
) -> None:
    """Print the rates and their ratio."""
    import torch
    from random_tokenizer import write_random_tokenizer

    from cosmos_hpc.config.recipes import load_recipe
    from cosmos_hpc.runs.folder import RunFolder
    from cosmos_hpc.utils import files
    from cosmos_hpc.worker.datasets.shard import _encodings_at_once
    from cosmos_hpc.worker.tokenizers.video import VideoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, height, width = size
    with tempfile.TemporaryDirectory() as folder:
        made, videos = Path(folder, "made"), Path(folder, "videos")
        made.mkdir()
        videos.mkdir()
        started = time.perf_counter()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            names = [made / f"{i:03d}.mp4" for i in range(min(count, 32))]
            list(pool.map(lambda i: write_scene(names[i], i, height, width), range(len(names))))
        for i in range(count):
            (videos / f"{i:05d}.mp4").symlink_to(names[i % len(names)])
        print(f"made {len(names)} videos in {time.perf_counter() - started:.0f} s", flush=True)

        run = RunFolder(Path(folder, "run"))
        parameters = write_random_tokenizer(
            run.tokenizer, size, 8 if tiny else 160, 1 if tiny else 2, device
        )
        files.write_json(marker_path(run, "download"), {"folder": "."})
        recipe = load_recipe(
            "ar4b",
            [f"data.tokenizer={run.tokenizer}"]
            + [f"data.{k}={v}" for k, v in zip(("frames", "height", "width"), size, strict=True)]
            + overrides,
        )
        run.data.pin(str(videos), sorted(p.name for p in videos.iterdir()), 1)
        streams = recipe.data.batch_size if device == "cuda" else 1
        tokenizer = VideoTokenizer(run.tokenizer, recipe.data.latent_shape, device, streams)
        name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
        print(f"{name}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}")
        print(f"encoder of {parameters / 1e6:.0f} M parameters, clips of {size}")
        alone = {}
        for batch, beside in ((1, 1), (4, 1), (8, 1), (16, 1), (1, streams)):
            if (batch, beside) in alone:
                continue
            rate = encoder_rate(tokenizer, recipe, batch, beside, seconds)
            alone[batch, beside] = rate
            print(
                f"  encoder alone, {batch:2d} a call, {beside:2d} streams {rate:8.2f} clips/s",
                end="",
            )
            print(f", {torch.cuda.max_memory_reserved() / 1e9:.1f} GB", flush=True)
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
        at_once = _encodings_at_once(recipe.data, device)
        pinned = tokenizer_rate(tokenizer, recipe, at_once, seconds)
        print(f"  tokenizer alone                      {pinned:8.2f} clips/s", flush=True)
        decoded, decoders = decoder_rate(run, recipe, device)
        print(
            f"  {decoders:2d} decoders alone                   {decoded:8.2f} clips/s", flush=True
        )
        took, clips = pipeline(run, recipe, len(names))
        again = encoder_rate(tokenizer, recipe, 1, streams, seconds)
        print(f"  encoder alone, {streams} streams, again     {again:8.2f} clips/s")

    # What it takes to load the tokenizer is not counted, as it is not above.
    wall = took["wait"] + took["tokenize"] + took["write"]
    rate = clips / wall
    print(f"  from files to the journal            {rate:8.2f} clips/s")
    best = max(again, alone[1, streams])
    alone[1, streams] = best
    for (batch, beside), other in alone.items():
        print(f"  ratio to the encoder, {batch} a call, {beside} streams: {rate / other:.3f}")
    limit = "the encoder" if pinned > 0.95 * best else "what goes to and from the GPU"
    print(f"  the slowest stage by itself is {'decoding' if decoded < pinned else limit}")
    shares = ", ".join(f"{a} {took[a] / wall:.1%}" for a in ("tokenize", "wait", "write"))
    print(f"  of the time: {shares}; loading before that {took['load']:.1f} s")
    cores = {a: took[a] / clips * 1e3 for a in ("decode", "resize")}
    print("  decoders, a clip: " + ", ".join(f"{a} {ms:.0f} ms" for a, ms in cores.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", default="33,640,1024")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    frames, height, width = map(int, given.size.split(","))
    main(given.videos, given.seconds, (frames, height, width), given.tiny, given.overrides)
