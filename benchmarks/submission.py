"""How long it takes to submit an array of many shards to Slurm, and how many sbatch calls.

Beside it, in the same run on the same cluster: submitit's ``map_array``, in pieces that Slurm
takes, and one ``submit`` a shard. Boots the cluster of the tests.

python benchmarks/submission.py [SHARDS] [SINGLE_SUBMITS]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import submitit

from cosmos_hpc.backends.slurm.commands import environment

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.slurm.lab import Lab
from tests.slurm.login import PROFILE

#: Highest array index of the test cluster, as Slurm's default.
LARGEST_ARRAY = 1001


def counting_sbatch(folder: Path) -> Path:
    """An sbatch that counts its calls, before the real one on the PATH."""
    folder.mkdir()
    real, calls = shutil.which("sbatch"), folder / "calls"
    script = folder / "sbatch"
    script.write_text(f'#!/bin/sh\ncase "$*" in *--test-only*) ;; *) echo x >>{calls} ;; esac\n')
    with open(script, "a") as f:
        f.write(f'exec {real} "$@"\n')
    script.chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    return calls


def ours(home: Path, shards: int) -> float:
    """Seconds of ``cosmos-hpc submit``, from the command to the prompt."""
    videos = home / "videos"
    videos.mkdir()
    for number in range(shards):
        (videos / f"{number:06d}.mp4").touch()
    (home / "clusters").mkdir()
    # Nothing is to run: what is measured is the submission.
    (home / "clusters" / "mine.yaml").write_text(PROFILE + 'sbatch: ["--hold"]\n')
    words = "submit recipe=ar_tiny cluster=mine data.input=videos data.videos_per_shard=1 --name x"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cosmos_hpc", *words.split()], cwd=home, check=True)
    return time.perf_counter() - started


def plain(folder: Path, tasks: int, piece: int) -> float:
    """Seconds of submitit's own way, ``piece`` tasks at a time; 1: a ``submit`` each."""
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(partition="cpu", time=60, additional_parameters={"hold": True})
    started = time.perf_counter()
    for first in range(0, tasks, piece):
        if piece == 1:
            executor.submit(abs, first)
        else:
            executor.map_array(abs, range(first, min(first + piece, tasks)))
    return time.perf_counter() - started


def main() -> None:
    """Print seconds and sbatch calls of each way."""
    shards = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    singles = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    home = Path(tempfile.mkdtemp(prefix="lab-"))
    calls = counting_sbatch(home / "bin")
    for name in os.environ.keys() - environment().keys():
        del os.environ[name]
    with Lab(home / "lab", max_array_size=LARGEST_ARRAY) as lab:
        os.environ.update(lab.environment | {"PATH": os.environ["PATH"]})
        rows = []
        for name, tasks, run in [
            ("cosmos-hpc submit", shards, lambda: ours(home, shards)),
            ("submitit map_array", shards, lambda: plain(home / "array", shards, LARGEST_ARRAY)),
            ("submitit submit", singles, lambda: plain(home / "single", singles, 1)),
        ]:
            calls.write_text("")
            seconds = run()
            rows.append((name, tasks, seconds, len(calls.read_text()) // 2))
            subprocess.run(["scancel", "--user=root"], check=True)
            time.sleep(2)
        for name, tasks, seconds, sbatch in rows:
            each = f"{1e3 * seconds / tasks:8.2f} ms each, {sbatch} sbatch calls"
            print(f"{name:<20} {tasks:>6} tasks {seconds:7.2f} s {each}")
        print(f"ratio to map_array: {rows[0][2] / rows[1][2]:.1f}")
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
