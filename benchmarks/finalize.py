"""Joining shards beside Megatron's own merge, in the same run.

    python benchmarks/finalize.py [shards] [megabytes a shard]

Writes shards of random ids as the preprocess stage publishes them, then, in turn: joins them by
Megatron's IndexedDatasetBuilder.add_index, which checks nothing, and says how much of it is the
garbage collection that it asks for after every shard; hashes every file, as who wants them checked
would do before; joins them by the finalize stage, which checks while it copies; and runs the
finalize stage with `data.join=false`, which only checks. What is written is flushed to the disk.
`dd` copies one file of the same size. The shards are in the page cache all the time.
"""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from unittest import mock

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from msgspec.structs import replace

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.data.shards import write_marker
from cosmos_hpc.planning.plans import make_plan
from cosmos_hpc.runs.create import open_run
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.shard import write_documents
from cosmos_hpc.worker.stages.finalize import finalize

T = TypeVar("T")


def make_shards(folder: Path, recipe: Recipe, shards: int, clips: int) -> RunFolder:
    """A run whose shards are published, with random ids."""
    run, cluster, count = RunFolder(folder), load_cluster(), shards * clips
    open_run(run, recipe, cluster, make_plan(recipe, cluster, count))
    run.data.pin(str(folder), [f"{i:08d}.mp4" for i in range(count)], shards)
    random = np.random.default_rng(0)
    ids_per_clip = recipe.data.ids_per_clip
    for shard in range(shards):
        path = run.tokens.shard(shard)
        path.mkdir(parents=True)
        write_documents(path / "tokens", random.integers(0, 64_000, (clips, ids_per_clip)))
        rows = (
            {
                "index": shard * clips + i,
                "video": f"{shard * clips + i:08d}.mp4",
                "seconds": 1.1,
                "padded": 0,
                "rotated": 0,
                "clips": 1,
            }
            for i in range(clips)
        )
        files.write_jsonl(path / "clips.jsonl", rows)
        files.write_jsonl(path / "failed.jsonl", [])
        marker = {
            "shard": shard,
            "videos": clips,
            "clips": clips,
            "failed": 0,
            "padded": 0,
            "ids_per_clip": ids_per_clip,
            "sha256": {p.name: files.sha256(p) for p in sorted(path.iterdir())},
            "seconds": {},
        }
        write_marker(path, marker)
    return run


def megatron(run: RunFolder, target: Path) -> float:
    """Megatron's merge of all shards; returns the seconds of its garbage collections."""
    collect, seconds = gc.collect, 0.0

    def timed_collect() -> int:
        nonlocal seconds
        started = time.perf_counter()
        found = collect()
        seconds += time.perf_counter() - started
        return found

    target.mkdir()
    builder = IndexedDatasetBuilder(str(target / "tokens.bin"), dtype=np.uint16)
    with mock.patch("gc.collect", timed_collect):
        for shard in range(run.data.num_shards()):
            builder.add_index(str(run.tokens.shard(shard) / "tokens"))
    builder.finalize(str(target / "tokens.idx"))
    for name in ("tokens.bin", "tokens.idx"):
        files.fsync_path(target / name)
    return seconds


def hashed(run: RunFolder) -> None:
    """Compare every file of every shard with its marker."""
    for shard in range(run.data.num_shards()):
        digests = files.read_json(marker_path(run, "preprocess", shard))["sha256"]
        assert all(
            files.sha256(run.tokens.shard(shard) / name) == digests[name] for name in digests
        )


def copy(source: Path, target: Path) -> None:
    """Copy a file to the disk."""
    command = ["dd", f"if={source}", f"of={target}", "bs=4M", "conv=fsync", "status=none"]
    subprocess.run(command, check=True)


def timed(what: str, size: int, work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a way, which are printed, and what it returns."""
    os.sync()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    print(f"{what:<28} {seconds:7.1f} s  {size / seconds / 1e6:7.0f} MB/s", flush=True)
    return seconds, result


def main(shards: int = 500, megabytes: int = 5) -> None:
    """Print the figures."""
    recipe = load_recipe("ar_tiny", ["data.frames=33", "data.height=640", "data.width=1024"])
    apart = replace(recipe, data=replace(recipe.data, join=False))
    clips = max(1, megabytes * 1_000_000 // (2 * recipe.data.ids_per_clip))
    with tempfile.TemporaryDirectory() as name:
        folder, plain = Path(name), Path(name) / "plain"
        run = make_shards(folder / "run", recipe, shards, clips)
        size = shards * clips * recipe.data.ids_per_clip * 2
        print(f"{platform.machine()}, {os.cpu_count()} cores, {shards} shards, {size / 1e9:.2f} GB")
        print(f"{shards * clips} clips of {recipe.data.ids_per_clip} ids")
        merge, collecting = timed("Megatron's merge", size, lambda: megatron(run, plain))
        hashing, _ = timed("hashing", size, lambda: hashed(run))
        ours, _ = timed("finalize", size, lambda: finalize(run, recipe))
        for file in ("tokens.bin", "tokens.idx"):
            assert files.sha256(run.tokens.path / file) == files.sha256(plain / file), (
                "they disagree"
            )
        only, _ = timed("finalize, data.join=false", size, lambda: finalize(run, apart))
        disk, _ = timed("dd of one file", size, lambda: copy(plain / "tokens.bin", folder / "dd"))
    print(f"{collecting:.1f} s of Megatron's merge are garbage collections")
    print("times that of finalize:")
    ways = {"Megatron's merge": merge, "without its collections": merge - collecting}
    ways.update({"with hashing before": merge + hashing, "dd": disk, "data.join=false": only})
    for way, seconds in ways.items():
        print(f"  {way:<24} {seconds / ours:6.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
