"""Where the time of preprocessing goes, on this machine's cores.

    python benchmarks/preprocess.py VIDEOS [recipe overrides]

Prepares a folder of videos in one process a core, as the array tasks of a local run do, and prints
clips a second with the seconds of each activity, beside the straightforward way: decode the whole
file, resize every frame, one video after the other, and tokenize each clip alone.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter

import av
import numpy as np
import torch

from cosmos_hpc import files
from cosmos_hpc.cluster import load_cluster
from cosmos_hpc.plans import make_plan
from cosmos_hpc.recipes import Recipe, load_recipe
from cosmos_hpc.runs import RunFolder, open_run, pin_videos
from cosmos_hpc.stages import stages_of, task_command, write_specs
from cosmos_hpc.videos import list_videos
from cosmos_hpc.worker.download import download, tokenizer_folder
from cosmos_hpc.worker.tokenizer import VideoTokenizer
from cosmos_hpc.worker.video import _fit

ACTIVITIES = ("decode", "resize", "tokenize", "write")


def straightforward(run: RunFolder, recipe: Recipe, videos: list[str]) -> tuple[float, np.ndarray]:
    """Seconds and ids of the plain way, in one process."""
    tokenizer = VideoTokenizer(tokenizer_folder(run), recipe.data.latent_shape)
    started, ids = time.perf_counter(), []
    for video in videos:
        with av.open(os.path.join(str(recipe.data.input), video)) as container:
            pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        resized = [_fit(p, recipe.data.height, recipe.data.width) for p in pictures]
        clip = torch.stack(resized[: recipe.data.frames], 1)
        ids.append(tokenizer.encode(clip[None]).flatten().numpy())
    return time.perf_counter() - started, np.stack(ids)


def main(videos: str, overrides: list[str]) -> None:
    """Print the figures for a folder of videos."""
    recipe = load_recipe("ar_tiny", [f"data.input={os.path.abspath(videos)}", *overrides])
    cluster = load_cluster()
    found = list_videos(videos)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        plan = make_plan(recipe, cluster, len(found))
        open_run(run, recipe, cluster, plan)
        pin_videos(run, videos, found, cluster.parallel)
        write_specs(run, recipe)
        download(run, recipe)
        stage = next(s for s in stages_of(run, recipe) if s.name == "preprocess")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        workers = [
            subprocess.Popen(
                task_command(run, stage, task), env=environment, stdout=subprocess.DEVNULL
            )
            for task in range(stage.tasks)
        ]
        assert all(worker.wait() == 0 for worker in workers)
        seconds: Counter[str] = Counter()
        for task in range(stage.tasks):
            seconds.update(files.read_json(run.marker("preprocess", task))["seconds"])
        ours = np.concatenate(
            [np.fromfile(run.shard(t) / "tokens.bin", np.uint16) for t in range(stage.tasks)]
        )
        torch.set_num_threads(1)
        plain, ids = straightforward(run, recipe, found)
    assert np.array_equal(ours, ids.flatten()), "the two ways disagree"

    busy = sum(seconds[a] for a in ACTIVITIES)
    wall = busy / stage.tasks
    size = f"{recipe.data.frames}x{recipe.data.height}x{recipe.data.width}"
    print(f"{platform.machine()}, {stage.tasks} processes, torch {torch.__version__}")
    print(f"{len(found)} videos, one clip of {size} each")
    for activity in ACTIVITIES:
        share = seconds[activity] / busy
        print(
            f"  {activity:<9} {seconds[activity] / len(found) * 1e3:7.1f} ms a clip  {share:4.0%}"
        )
    print(f"  together  {len(found) / wall:7.2f} clips a second on {stage.tasks} processes")
    print(f"  straightforward, one process: {len(found) / plain:.2f} clips a second")
    print(f"  ratio {plain / wall:.2f}, same ids")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
