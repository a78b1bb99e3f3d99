"""What planning a large data set takes on the login node, and a task's look at its own rows.

    python benchmarks/planning.py [entries] [files] [source]...

Makes lists of so many entries (JSONL, CSV, Parquet, plain), tars of as many samples, and a tree of
so many empty files, plans a run of each, or of the sources that are named, in a process of its own
as `submit` does before it starts anything (listing, costs, plan, pinning), and prints seconds,
those of them that a processor worked, and the largest resident set. Beside it, in the same way, the
straightforward one: every path is looked for on the disk. The ratio is that of the processors'
seconds. Then one task reads its rows, by their offsets and as a part of the whole list. Videos are
empty or absent: none is opened.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.backends.launch import costs_of
from cosmos_hpc.config.recipes import list_input, load_recipe
from cosmos_hpc.planning.plans import make_plan
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.pinned import PinnedVideos
from cosmos_hpc.utils import files

PROMPT = "A robot arm picks up the cup on the table and puts it into the sink, number {}."


def plan(source: str, folder: str, *overrides: str) -> None:
    """What `submit` does with the videos before anything starts."""
    recipe = load_recipe("ar_tiny", [f"data.input={source}", *overrides])
    root, rows = list_input(recipe)
    costs = costs_of(root, rows, recipe.data, print)
    planned = make_plan(recipe, load_cluster(), len(rows))
    RunFolder(folder).data.pin(root, rows, planned.shards or 1, costs)


def straightforward(source: str, folder: str) -> None:
    """Read everything, look for every file, write everything."""
    path = Path(source)
    if path.is_dir():
        names = sorted(str(p.relative_to(path)) for p in path.rglob("*.mp4") if p.is_file())
    elif path.suffix == ".tar":
        names = []
        for shard in sorted(path.parent.glob(path.name)):
            with tarfile.open(shard) as tar:
                names += [f"{shard.name}/{m.name}" for m in tar if m.name.endswith(".mp4")]
    else:
        names = _read_names(path)
        assert sum((path.parent / name).is_file() for name in names)
    files.write_jsonl(Path(folder) / "videos.jsonl", [{"path": name} for name in names])


def _read_names(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return [str(name) for name in pq.read_table(path)["path"].to_pylist()]
    with open(path, newline="") as f:
        if path.suffix == ".csv":
            return [row["path"] for row in csv.DictReader(f)]
        lines = f.read().splitlines()
    jsonl = path.suffix == ".jsonl"
    return [json.loads(line)["visual_input"] if jsonl else line for line in lines]


def measure(what: str, *arguments: str) -> tuple[float, float, float]:
    """Seconds, seconds of a processor, and GB of a call in a process of its own."""
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import planning; planning.{what}"
    call = f"(*{arguments!r})" if arguments else "()"
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code + call])
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0
    processor = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - started, processor, usage.ru_maxrss * 1024 / 1e9


def make_inputs(folder: Path, entries: int, tree: int) -> dict[str, tuple[str, int]]:
    """The sources by name, and how many videos each has."""
    (folder / "0").mkdir()
    (folder / "0" / "0.mp4").touch()
    with (
        open(folder / "list.jsonl", "w") as f,
        open(folder / "list.txt", "w") as g,
        open(folder / "list.csv", "w", newline="") as h,
    ):
        table = csv.writer(h)
        table.writerow(["path", "prompt", "start", "end"])
        for i in range(entries):
            name = f"{i // 1000}/episode-{i:07d}/rgb.mp4" if i else "0/0.mp4"
            f.write(json.dumps({"visual_input": name, "prompt": PROMPT.format(i)}) + "\n")
            g.write(name + "\n")
            table.writerow([name, PROMPT.format(i), i % 7, i % 7 + 4])
    pq.write_table(pyarrow.csv.read_csv(folder / "list.csv"), folder / "list.parquet")
    _make_tars(folder / "tars", entries)
    for i in range(tree):
        path = folder / "tree" / f"{i // 1000:04d}" / f"{i:07d}.mp4"
        if i % 1000 == 0:
            path.parent.mkdir(parents=True)
        os.close(os.open(path, os.O_CREAT))
    return {
        "JSONL": (str(folder / "list.jsonl"), entries),
        "list": (str(folder / "list.txt"), entries),
        "CSV": (str(folder / "list.csv"), entries),
        "Parquet": (str(folder / "list.parquet"), entries),
        "WebDataset": (str(folder / "tars" / "*.tar"), entries),
        "folder": (str(folder / "tree"), tree),
    }


def _make_tars(folder: Path, samples: int) -> None:
    """Shards of a thousand samples: an empty video and its description."""
    folder.mkdir()
    for first in range(0, samples, 1000):
        with tarfile.open(folder / f"{first // 1000:06d}.tar", "w") as tar:
            for i in range(first, min(first + 1000, samples)):
                text = json.dumps({"prompt": PROMPT.format(i)}).encode()
                for name, content in ((f"{i:07d}.mp4", b""), (f"{i:07d}.json", text)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def main(words: Sequence[str]) -> None:
    """Print the table."""
    entries = int(words[0]) if words else 1_000_000
    tree = int(words[1]) if len(words) > 1 else 200_000
    named = words[2:]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    row = "{:<20} {:>9} {:<6} {:>8} {:>10} {:>8} {:>18} {:>11} {:>6}"
    print(row.format(
        "source", "videos", "clips", "seconds", "processor", "peak GB", "straightforward s",
        "processor", "ratio",
    ))  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source, (path, videos) in make_inputs(folder, entries, tree).items():
            if named and source not in named:
                continue
            plain, plainly, _ = measure("straightforward", path, str(folder / "plain"))
            for clips in ("first", "all"):
                run = str(folder / f"{source} {clips}")
                seconds, processor, peak = measure("plan", path, run, f"data.clips={clips}")
                of_plan = f"{seconds:.1f}", f"{processor:.1f}", f"{peak:.2f}"
                of_plain = f"{plain:.1f}", f"{plainly:.1f}", f"{plainly / processor:.2f}"
                print(row.format(source, videos, clips, *of_plan, *of_plain), flush=True)
        if not named or "JSONL" in named:
            _one_task(RunFolder(folder / "JSONL first").data)


def _one_task(pinned: PinnedVideos) -> None:
    """Print how long a task takes for its rows, by their offset and from the whole list."""
    middle = pinned.num_shards() // 2
    started = time.perf_counter()
    mine = pinned.of_shard(middle).rows
    by_offset = time.perf_counter() - started
    first = pinned.bounds()[middle]
    started = time.perf_counter()
    whole = files.read_jsonl(pinned.videos)[first : first + len(mine)]
    in_full = time.perf_counter() - started
    assert mine == whole
    print(f"a task's {len(mine)} rows of {pinned.num_videos()} in {pinned.num_shards()} shards:")
    print(f"  by offset {by_offset * 1e3:.1f} ms, from the whole list {in_full * 1e3:.0f} ms,")
    print(f"  ratio {in_full / by_offset:.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
