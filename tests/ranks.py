"""Runs modules as the ranks of a job, as torchrun does, in forks of a process with the libraries.

Importing NeMo takes longer than a few steps of a small model: here it is imported once for all that
a process of pytest starts. ``python -m tests.ranks`` is the process that forks.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import HAS_GPU, REPOSITORY
from tests.ports import free_ports


@dataclass
class Ended:
    """What the ranks have printed, and whether all of them succeeded."""

    succeeded: bool
    log: str


def run_ranks(
    folder: Path,
    module: str,
    *arguments: str,
    ranks: int = 1,
    env: Mapping[str, str] | None = None,
    timeout: int = 600,
) -> Ended:
    """Run a module to its end; where a rank fails, the others are killed.

    Args:
        folder: for their logs.
        module: that is run as ``python -m`` would.
        arguments: of the module.
        ranks: processes; with one, it is no distributed job.
        env: variables beside those of this process.
        timeout: seconds, after which they are killed.
    """
    logs = [folder / f"{uuid.uuid4().hex}.log" for _ in range(ranks)]
    request = {
        "module": module,
        "arguments": arguments,
        "env": {**os.environ, **(env or {})},
        "logs": [str(log) for log in logs],
        "timeout": timeout,
    }
    forking = _forking_process()
    assert forking.stdin is not None and forking.stdout is not None
    print(json.dumps(request), file=forking.stdin, flush=True)
    answer = forking.stdout.readline()
    assert answer, "the process that forks has ended"
    text = "".join(log.read_text(errors="replace") for log in logs)
    return Ended(json.loads(answer), text)


@functools.cache
def _forking_process() -> subprocess.Popen[str]:
    forking = subprocess.Popen(
        [sys.executable, "-m", "tests.ranks"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(forking.kill)
    return forking


def main() -> None:
    """Answer requests, one per line, until there are no more; a fork leaves this function."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # NeMo asks about GPUs when it is imported, after which a fork could not use them.
    if not HAS_GPU:
        import nemo.collections.llm  # noqa: F401

        import cosmos_hpc.worker.stages.train
        import cosmos_hpc.worker.training.nemo  # noqa: F401

    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        [port], children = free_ports(1), {}
        for rank in range(len(request["logs"])):
            child = os.fork()
            if not child:
                return _become(rank, port, request)
            # Before it could fail and have the others killed.
            os.setpgid(child, child)
            children[child] = rank
        print(json.dumps(_wait(children, request["timeout"])), file=answers, flush=True)


def _become(rank: int, port: int, request: dict[str, Any]) -> None:
    """Run the module in this fork, and end as any Python does."""
    log = os.open(request["logs"][rank], os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.clear()
    os.environ.update(request["env"])
    ranks = len(request["logs"])
    if ranks > 1:
        of_rank = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
        of_all = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_WORLD_SIZE": 1}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        torchrun = {"TORCHELASTIC_RUN_ID": port, "TORCHELASTIC_RESTART_COUNT": 0}
        values = {**of_rank, **of_all, **where, **torchrun}
        os.environ.update({name: str(value) for name, value in values.items()})
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _wait(children: dict[int, int], timeout: float) -> bool:
    """Whether all succeed; what runs when one fails, or at the end of the time, is killed."""
    until, succeeded = time.monotonic() + timeout, True
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if children.pop(child, None) is not None:
            succeeded &= status == 0
        if time.monotonic() > until:
            succeeded = False
        if not succeeded:
            for other in children:
                os.killpg(other, signal.SIGKILL)
        if not child:
            time.sleep(0.05)
    return succeeded


if __name__ == "__main__":
    main()
