"""How much of an encoder's speed is left when clips come from video files, on one GPU.

    python benchmarks/pipeline_gpu.py [--videos N] [--seconds S] [--tiny]

Writes an encoder of 100 million random parameters (``random_tokenizer.py``), and videos of 60
frames, 1024x640, H.264. Then (a) the encoder alone on clips that lie in the memory of the GPU, and
(b) the package's preprocessing from the files to the journal, with as many decoders as there are
cores less one. Prints both rates, their ratio and what limits. ``--tiny`` shrinks all for a try
without a GPU.

Needs torch, PyAV, pydantic and PyYAML; ids are not joined into a data set, which is another stage.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cosmos_hpc.recipes import Recipe
    from cosmos_hpc.runs import RunFolder
    from cosmos_hpc.worker.tokenizer import VideoTokenizer

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


def encoder_rate(tokenizer: VideoTokenizer, recipe: Recipe, batch: int, seconds: float) -> float:
    """Clips a second of the encoder on clips that are where it needs them."""
    import torch

    data, cuda = recipe.data, tokenizer.device.type == "cuda"
    shape = (batch, 3, data.frames, data.height, data.width)
    video = torch.rand(shape, device=tokenizer.device, dtype=torch.bfloat16) * 2 - 1
    done, started = 0, 0.0
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        for call in range(100_000):
            tokenizer._encoder(video)
            if cuda and call % 4 == 0:
                torch.cuda.synchronize()
            if call == 8 or (not cuda and call == 1):  # warm
                done, started = 0, time.perf_counter()
            elif started:
                done += batch
                if time.perf_counter() - started > seconds:
                    break
        if cuda:
            torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def pipeline(run: RunFolder, recipe: Recipe) -> tuple[dict[str, float], int]:
    """Seconds of each activity of the package's way from files to the journal, and clips."""
    from cosmos_hpc.worker.journal import Journal
    from cosmos_hpc.worker.preprocess import Shard

    with Journal(run.journal(0), recipe.data.ids_per_clip) as journal:
        shard = Shard(run, recipe, 0, journal)
        shard.fill()
        clips = sum(row["clips"] for row in journal.rows)
    return dict(shard.clock.seconds), clips


def main(count: int, seconds: float, tiny: bool) -> None:
    """Print the rates and their ratio."""
    import torch
    from random_tokenizer import write_random_tokenizer

    from cosmos_hpc import files
    from cosmos_hpc.recipes import load_recipe
    from cosmos_hpc.runs import RunFolder, pin_videos
    from cosmos_hpc.worker.tokenizer import VideoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    height, width = (64, 96) if tiny else (640, 1024)
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
        size = (17, height, width) if tiny else (33, height, width)
        parameters = write_random_tokenizer(
            run.tokenizer, size, 8 if tiny else 160, 1 if tiny else 2, device
        )
        files.write_json(run.marker("download"), {"folder": "."})
        recipe = load_recipe(
            "ar4b",
            [f"data.tokenizer={run.tokenizer}"]
            + [f"data.{k}={v}" for k, v in zip(("frames", "height", "width"), size, strict=True)],
        )
        pin_videos(run, str(videos), sorted(p.name for p in videos.iterdir()), 1)
        tokenizer = VideoTokenizer(run.tokenizer, recipe.data.latent_shape, device)
        alone = {batch: encoder_rate(tokenizer, recipe, batch, seconds) for batch in (1, 4)}
        del tokenizer
        took, clips = pipeline(run, recipe)

    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{name}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}")
    print(f"encoder of {parameters / 1e6:.0f} M parameters, clips of {size}, {clips} clips")
    for batch, rate in alone.items():
        print(f"  (a) encoder alone, {batch} clips a call   {rate:8.2f} clips/s")
    # What it takes to load the tokenizer is not counted, as it is not above.
    wall = took["wait"] + took["tokenize"] + took["write"]
    rate = clips / wall
    print(f"  (b) from files to the journal      {rate:8.2f} clips/s")
    print(f"  ratio {rate / alone[1]:.3f}, to 4 clips a call {rate / alone[4]:.3f}")
    shares = ", ".join(f"{a} {took[a] / wall:.1%}" for a in ("tokenize", "wait", "write"))
    print(f"  of its time: {shares}")
    cores = {a: took[a] / clips * 1e3 for a in ("decode", "resize")}
    print("  decoders, a clip: " + ", ".join(f"{a} {ms:.0f} ms" for a, ms in cores.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    main(arguments.videos, arguments.seconds, arguments.tiny)
