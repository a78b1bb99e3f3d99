"""The processes that libraries start inside a rank, and what happens to the rank when they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import resource_tracker
from multiprocessing.managers import BaseManager
from multiprocessing.process import BaseProcess
from typing import Any

from cosmos_hpc.utils.progress import say

#: Processes that this one has killed itself.
_killed_here: set[int | None] = set()


def block_stops() -> set[Any]:
    """Keep TERM and INT from this thread, and from the processes that it starts from now on.

    Slurm sends TERM to all processes of a step, a terminal INT. Children inherit the mask: they
    must not die of either before they ignore them.

    Returns:
        The mask before.
    """
    # Its start, with that of the first child, would lift the mask.
    resource_tracker.ensure_running()
    return signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def end_with_a_killed_child() -> None:
    """From now on, end this process at once when a child that it starts is killed.

    Megatron-Core 0.15.3 writes checkpoints in forked processes and waits for them without an end:
    where the kernel takes one of them for its memory, all ranks would stand still until the time
    limit. A rank that ends instead is started again, from its last checkpoint.
    """
    start, kill = BaseProcess.start, BaseProcess.kill

    def start_watched(self: BaseProcess) -> None:
        start(self)
        threading.Thread(target=_watch, args=(self,), daemon=True).start()

    def kill_on_purpose(self: BaseProcess) -> None:
        # Python does so at the end of a manager that takes more than its seconds.
        _killed_here.add(self.pid)
        kill(self)

    BaseProcess.start = start_watched  # type: ignore[method-assign]
    BaseProcess.kill = kill_on_purpose  # type: ignore[method-assign]


def let_managers_end_with_this_process() -> None:
    """From now on, managers that this process starts end with it, also where it is killed.

    Megatron-Core 0.15.3 starts one at the first checkpoint. Left behind it would stay forever,
    and hold the log open, for which Slurm waits a minute where it does not find it.
    """
    start = BaseManager.start

    def start_bound(self: BaseManager, initializer: Any = None, initargs: Any = ()) -> None:
        before = block_stops()  # this process still needs its manager to save what it has
        try:
            start(self, _bound_to_parent, (initializer, initargs))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    BaseManager.start = start_bound  # type: ignore[method-assign]


def _bound_to_parent(initializer: Any, initargs: Any) -> None:
    """What a manager's process does first."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _watch(child: BaseProcess) -> None:
    number = _killed_by(child)
    # Libraries end children that they no longer need with SIGTERM, and then with SIGKILL.
    if number and number != signal.SIGTERM and child.pid not in _killed_here:
        say(
            f"{child.name} (process {child.pid}) of this process was killed "
            f"({signal.Signals(number).name}); "
            + ("was the memory of the node used up? " if number == signal.SIGKILL else "")
            + "Ending this process with it"
        )
        os._exit(1)


def _killed_by(child: BaseProcess) -> int:
    """Wait for a child; returns the signal that it died of, 0 where it ended by itself."""
    assert child.pid is not None
    try:
        # Its exit code is left there for who started it.
        ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        time.sleep(1)  # another thread was faster, and is noting the exit code
        return max(0, -(child.exitcode or 0))
    if ended is not None and ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
        return ended.si_status
    return 0
