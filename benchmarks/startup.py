"""How long the command line takes to answer: the median of ten runs of each command.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

GOALS = {("--help",): 0.3, ("recipes",): None, ("plan", "recipe=ar_tiny"): 0.5}

#: Modules of the worker side that bring large libraries: torch and PyAV, Megatron, NeMo.
WORKERS = ("datasets.shard", "stages.finalize", "training.nemo")


def seconds(command: list[str]) -> float:
    """Wall time of a command."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Print the medians, beside a Python that does nothing."""
    bare = statistics.median(seconds([sys.executable, "-c", ""]) for _ in range(10))
    print(f"python -c ''                    {bare:.3f} s")
    for arguments, goal in GOALS.items():
        command = [sys.executable, "-m", "cosmos_hpc", *arguments]
        median = statistics.median(seconds(command) for _ in range(10))
        aim = f" (goal: under {goal} s)" if goal else ""
        print(f"cosmos-hpc {' '.join(arguments):<20} {median:.3f} s{aim}")
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
