"""Carries out stages of this machine in a process of their own, which outlives the caller."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import ask_for
from cosmos_hpc.utils import files

_CODE = """
import sys
from cosmos_hpc.api import Run
from cosmos_hpc.errors import CosmosError
try:
    Run(sys.argv[1]).carry_out(sys.argv[2:])
except CosmosError as e:
    sys.exit(f"error: {e}")
"""
_LOOK_SECONDS = 0.1
#: Processes that were begun here, which Python would complain about if it forgot them.
_BEGUN: list[subprocess.Popen[bytes]] = []


def carry_out(run: RunFolder, stages: Sequence[str]) -> None:
    """Begin stages of a run that is prepared; returns when a process works on the run.

    What that process says is added to ``logs/submit.log``.

    Raises:
        WorkError: it ended before that, or a stage failed at once.
    """
    ask_for(run, stages)  # before the process does: status tells from it what is still to be done
    run.logs.mkdir(exist_ok=True)
    log = run.logs / "submit.log"
    with open(log, "ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _CODE, str(run.path), *stages],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _BEGUN[:] = [process, *(other for other in _BEGUN if other.poll() is None)]
    while process.poll() is None and not files.is_locked(run.lock):
        time.sleep(_LOOK_SECONDS)
    if process.returncode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        why = "".join(last).removeprefix("error: ") or f"exit code {process.returncode}"
        raise WorkError(f"{why}; {log} says more")
