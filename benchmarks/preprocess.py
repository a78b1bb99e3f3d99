"""Preprocessing beside the straightforward way, on this machine's cores, in turns.

    python benchmarks/preprocess.py VIDEOS [recipe overrides]
    python benchmarks/preprocess.py --long [recipe overrides]

The straightforward way takes one video at a time: decode the whole file, resize every frame, keep
the first ones, tokenize. The package's way is that of a local run: an array task a core, all at the
same time. Both give the same ids (asserted). ``--long`` makes videos of 60 seconds at 1920x1080
instead of taking a folder. Seconds do not count imports and loading of the tokenizer, which both
need.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.data.videos import list_video_files
from cosmos_hpc.planning.plans import make_plan
from cosmos_hpc.runs.create import open_run
from cosmos_hpc.runs.fetched import tokenizer_folder
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path, stages_of, task_command, write_specs
from cosmos_hpc.utils import files
from cosmos_hpc.worker.stages.download import download
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.clips import fit

CORES = len(os.sched_getaffinity(0))


def straightforward(recipe: Recipe, tokenizer: VideoTokenizer, videos: list[str]) -> Any:
    """Seconds and ids of the plain way."""
    started, ids, data = time.perf_counter(), [], recipe.data
    for video in videos:
        resized, scaler = [], VideoReformatter()
        with av.open(os.path.join(str(data.input), video)) as container:
            for frame in container.decode(video=0):
                picture = np.empty((3, data.height, data.width), np.uint8)
                fit(scaler, frame, picture)
                resized.append(picture)
        clip = np.stack(resized[: data.frames], 1)
        ids.append(tokenizer.encode(clip[None]).flatten().numpy())
    return time.perf_counter() - started, np.concatenate(ids)


def ours(run: RunFolder, recipe: Recipe) -> tuple[float, Counter[str], np.ndarray]:
    """Seconds, those of each activity in all tasks, and ids of the package's way."""
    stage = next(s for s in stages_of(run, recipe) if s.name == "preprocess")
    for task in range(stage.tasks):
        marker_path(run, "preprocess", task).unlink(missing_ok=True)
    # As a local run does it: the tasks share the cores.
    threads = str(max(1, CORES // stage.tasks))
    tasks = [
        subprocess.Popen(
            task_command(run, stage, task),
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for task in range(stage.tasks)
    ]
    assert [task.wait() for task in tasks] == [0] * stage.tasks
    markers = [files.read_json(marker_path(run, "preprocess", task)) for task in range(stage.tasks)]
    total: Counter[str] = Counter()
    for marker in markers:
        total.update(marker["seconds"])
    wall = max(sum(m["seconds"][a] for a in ("wait", "tokenize", "write")) for m in markers)
    ids = [np.fromfile(run.tokens.shard(t) / "tokens.bin", np.uint16) for t in range(stage.tasks)]
    return wall, total, np.concatenate(ids)


def make_long_videos(folder: Path, count: int) -> None:
    """Write videos of 60 seconds, 1920x1080 at 30 frames a second."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 255, (1080 // 8, 1920 // 8, 3), np.uint8)
        picture = coarse.repeat(8, 0).repeat(8, 1)
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"preset": "superfast"})
            stream.height, stream.width, stream.pix_fmt = 1080, 1920, "yuv420p"
            for t in range(1800):
                moved = np.roll(picture, (t, 3 * t), (0, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
            container.mux(stream.encode())


def main(videos: str, overrides: list[str], repeat: int, turns: int) -> None:
    """Print the figures for a folder of videos, each taken ``repeat`` times."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "videos"
        inputs.mkdir()
        names = [row["path"] for row in list_video_files(videos)[1]]
        for number, video in enumerate(names * repeat):
            (inputs / f"{number:04d}{Path(video).suffix}").symlink_to(Path(videos, video).resolve())
        recipe = load_recipe("ar_tiny", [f"data.input={inputs}", *overrides])
        cluster, found = load_cluster(), [row["path"] for row in list_video_files(str(inputs))[1]]
        run = RunFolder(Path(folder) / "run")
        open_run(run, recipe, cluster, make_plan(recipe, cluster, len(found)))
        run.data.pin(str(inputs), found, cluster.parallel)
        write_specs(run, recipe)
        download(run, recipe)
        tokenizer = VideoTokenizer(tokenizer_folder(run), recipe.data.latent_shape)
        walls, plain, seconds = [], [], Counter[str]()
        for _ in range(turns):
            wall, seconds, ids = ours(run, recipe)
            walls.append(wall)
            took, expected = straightforward(recipe, tokenizer, found)
            plain.append(took)
            assert np.array_equal(ids, expected), "the two ways disagree"

    size = f"{recipe.data.frames}x{recipe.data.height}x{recipe.data.width}"
    print(f"{platform.machine()}, {CORES} cores, torch {torch.__version__}")
    print(f"{len(found)} videos, one clip of {size} each, {turns} turns")
    for activity in ("decode", "resize", "tokenize", "write", "wait"):
        print(f"  {activity:<9} {seconds[activity] / len(found) * 1e3:7.1f} ms a clip")
    ratios = sorted(b / a for a, b in zip(walls, plain, strict=True))
    print(f"  package          {len(found) / statistics.median(walls):7.2f} clips/s")
    print(f"  straightforward  {len(found) / statistics.median(plain):7.2f} clips/s")
    print(
        f"  ratio {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}), same ids"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("videos", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.long:
        given = [arguments.videos] if arguments.videos else []
        with tempfile.TemporaryDirectory() as made:
            make_long_videos(Path(made), 2)
            main(made, [*given, *arguments.overrides], arguments.repeat, arguments.turns)
    else:
        main(arguments.videos, arguments.overrides, arguments.repeat, arguments.turns)
