"""The processes that libraries start inside a rank, and what becomes of the rank without them."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from cosmos_hpc.progress import say


def end_with_a_killed_child() -> None:
    """From now on, end this process at once when a child that it starts is killed.

    Megatron-Core 0.15.3 writes checkpoints in forked processes and waits for them without an end:
    where the kernel takes one of them for its memory, all ranks would stand still until the time
    limit. A rank that ends instead is started again, from its last checkpoint.
    """
    start = BaseProcess.start

    def start_watched(self: BaseProcess) -> None:
        start(self)
        threading.Thread(target=_watch, args=(self,), daemon=True).start()

    BaseProcess.start = start_watched  # type: ignore[method-assign]


def _watch(child: BaseProcess) -> None:
    wait([child.sentinel])
    child.join()
    code = child.exitcode or 0
    # Libraries end children that they no longer need with SIGTERM.
    if code < 0 and code != -signal.SIGTERM:
        name = signal.Signals(-code).name
        say(
            f"{child.name} (process {child.pid}) of this process was killed ({name}); "
            + ("was the memory of the node used up? " if code == -signal.SIGKILL else "")
            + "Ending this process with it"
        )
        os._exit(1)
