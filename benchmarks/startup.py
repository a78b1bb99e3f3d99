"""How long the command line takes to answer: the median of 15 runs of each command, in turns.

python benchmarks/startup.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: Times of a bare ``python -c ''`` that each command may take at most.
GOALS = {
    ("--help",): 2,
    ("recipes",): 4,
    ("plan", "recipe=ar_tiny"): 4,
    ("status", "nothing"): None,
}
ROUNDS = 15
#: As where a command was used before: Python keeps what it has compiled.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
#: What every typed setting needs, whatever the package does itself.
MSGSPEC = """
import msgspec
class Section(msgspec.Struct):
    value: int
msgspec.convert({"value": 1}, Section)
"""
#: Completes a line as readline does, which calls this function in a shell that has the script.
COMPLETE = """
source "$1"
COMP_LINE="cosmos-hpc submit recipe=ar_tiny train.max_s" COMP_POINT=44
TIMEFORMAT=%R
time for ((i = 0; i < 20; i++)); do _cosmos_hpc; done
"""

#: Modules of the worker side that bring large libraries: torch and PyAV, Megatron, NeMo.
WORKERS = ("datasets.shard", "stages.generate", "training.nemo")


def seconds(command: list[str]) -> float:
    """Wall time of a command."""
    started = time.perf_counter()
    quiet = subprocess.DEVNULL
    subprocess.run(command, stdout=quiet, stderr=quiet, env=ENVIRONMENT)
    return time.perf_counter() - started


def commands() -> None:
    """Print what commands take, beside a Python that does nothing, in turns with it."""
    python = [sys.executable, "-c"]
    runs: dict[str, tuple[list[str], int | None]] = {
        "python -c ''": ([*python, ""], None),
        "a class of msgspec": ([*python, MSGSPEC], None),
    }
    for arguments, goal in GOALS.items():
        name = f"cosmos-hpc {' '.join(arguments)}"
        runs[name] = ([sys.executable, "-m", "cosmos_hpc", *arguments], goal)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(1 + ROUNDS):
        for name, (command, _) in runs.items():
            took = seconds(command)
            if number:  # the first may compile
                taken[name].append(took)
    bare = statistics.median(taken["python -c ''"])
    for name, times in taken.items():
        median, goal = statistics.median(times), runs[name][1]
        aim = f" (goal: at most {goal} times)" if goal else ""
        print(f"{name:<32} {median:.3f} s, {median / bare:.1f} times{aim}")


def completion(folder: Path) -> None:
    """Print what completing a word takes."""
    script = folder / "completion"
    words = [sys.executable, "-m", "cosmos_hpc", "completion", "bash"]
    script.write_bytes(subprocess.run(words, check=True, capture_output=True).stdout)
    bash = ["bash", "-c", COMPLETE, "complete", str(script)]
    done = subprocess.run(bash, check=True, capture_output=True, text=True, cwd=folder)
    print(f"completing a word in bash        {float(done.stderr) / 20:.3f} s")


def main() -> None:
    """Print all of it."""
    commands()
    with tempfile.TemporaryDirectory() as folder:
        completion(Path(folder))
    for name in WORKERS:
        plain = f"import cosmos_hpc.worker.{name}"
        quick = "from cosmos_hpc.utils.imports import *; end_quickly()\n"
        quick += "with large_imports(freeze=True):\n  "
        both = [
            statistics.median(
                seconds([sys.executable, "-W", "ignore", "-c", code]) for _ in range(5)
            )
            for code in (plain, quick + plain)
        ]
        print(f"{plain}: {both[0]:.2f} s, without collections {both[1]:.2f} s")


if __name__ == "__main__":
    main()
