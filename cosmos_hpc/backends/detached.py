"""Carries out stages of this machine in a process of their own, which outlives the caller."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import ask_for
from cosmos_hpc.runs.sweeps import LEFT_OUT, source_of
from cosmos_hpc.utils import files

_CODE = """
import functools, sys
from cosmos_hpc.api import Run
from cosmos_hpc.backends.sweeps import one_after_another
from cosmos_hpc.errors import CosmosError
from cosmos_hpc.utils.console import Console
try:
    runs = [Run(path) for path in sys.argv[2:]]
    work = [functools.partial(run.carry_out, sys.argv[1].split(",")) for run in runs]
    one_after_another([run.folder for run in runs], work, Console())
except CosmosError as e:
    sys.exit(f"error: {e}")
"""
_LOOK_SECONDS = 0.1
#: Processes that were begun here, which Python would complain about if it forgot them.
_BEGUN: list[subprocess.Popen[bytes]] = []


def carry_out(runs: Sequence[RunFolder], stages: Sequence[str]) -> None:
    """Begin stages of runs that are prepared; returns when a process works on one of them.

    That process carries out one run after another. What it says is added to ``logs/submit.log`` of
    the first one.

    Raises:
        WorkError: it ended before that, or a stage failed at once.
    """
    for run in runs:
        # Before the process does: status tells from it what is still to be done.
        left_out = {LEFT_OUT} if source_of(run) else set()
        ask_for(run, [stage for stage in stages if stage not in left_out])
    run = runs[0]
    run.logs.mkdir(exist_ok=True)
    log = run.logs / "submit.log"
    with open(log, "ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _CODE, ",".join(stages), *(str(run.path) for run in runs)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _BEGUN[:] = [process, *(other for other in _BEGUN if other.poll() is None)]
    # Runs that are done already are passed over.
    while process.poll() is None and not any(files.is_locked(one.lock) for one in runs):
        time.sleep(_LOOK_SECONDS)
    if process.returncode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        why = "".join(last).removeprefix("error: ") or f"exit code {process.returncode}"
        raise WorkError(f"{why}; {log} says more")
