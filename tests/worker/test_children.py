"""A rank does not outlive a process that was killed under it."""

import contextlib
import os
import select
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import multiprocessing, os, signal, sys, time
from cosmos_hpc.worker.children import end_with_a_killed_child

def work(how):
    if how == "error":
        raise SystemExit(3)
    if how != "done":
        os.kill(os.getpid(), getattr(signal, how))

if __name__ == "__main__":
    end_with_a_killed_child()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=work, args=(sys.argv[1],))
    child.start()
    if sys.argv[1].startswith("SIG"):
        # As a library does that waits for a message which never comes.
        time.sleep(float(sys.argv[2]))
    child.join()
    print("went on after", child.exitcode, flush=True)
"""

#: Megatron's writer of checkpoints, taken away by the kernel at the first tensor.
SAVING = """
import multiprocessing, os, signal, sys
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from cosmos_hpc.worker.children import end_with_a_killed_child

class Tensor:
    @property
    def is_cpu(self):
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    if sys.argv[1] == "watched":
        end_with_a_killed_child()
    print("saving", flush=True)
    FileSystemWriterAsync.write_preloaded_data_multiproc(
        [], False, 0, [("/dev/null", "key", ([], [(None, Tensor())]))], multiprocessing.Queue()
    )
"""


def run(*arguments, program=PROGRAM):
    command = [sys.executable, "-", *map(str, arguments)]
    return subprocess.run(command, input=program, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "SIGBUS"])
def test_a_killed_child_takes_its_parent_with_it(how):
    done = run(how, 50)
    assert done.returncode == 1
    assert how in done.stdout
    assert ("memory" in done.stdout) == (how == "SIGKILL")
    assert "went on" not in done.stdout


@pytest.mark.parametrize(("how", "code"), [("done", 0), ("error", 3), ("SIGTERM", -15)])
def test_the_parent_goes_on_after_other_ends(how, code):
    done = run(how, 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"went on after {code}"


def test_a_killed_writer_of_a_checkpoint_does_not_stop_the_rank_for_ever():
    done = run("watched", program=SAVING)
    assert done.returncode == 1
    assert "SIGKILL" in done.stdout


def test_megatron_still_waits_for_a_killed_writer():
    """Where this fails, upstream has mended it, and the watch can go."""
    with subprocess.Popen(
        [sys.executable, "-c", SAVING, "alone"], stdout=subprocess.PIPE, start_new_session=True
    ) as waiting:
        assert waiting.stdout.readline() == b"saving\n"
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=5)
        os.killpg(waiting.pid, signal.SIGKILL)


#: A rank with a manager as Megatron starts it, killed; the manager says which process it is.
MANAGER = """
import multiprocessing, os, signal, sys
from cosmos_hpc.worker.children import let_managers_end_with_this_process

if __name__ == "__main__":
    if sys.argv[1] == "bound":
        let_managers_end_with_this_process()
    manager = multiprocessing.get_context("spawn").Manager()
    manager.Queue().put(1)
    print(manager._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["bound", "alone"])
def test_a_manager_ends_with_its_process(tmp_path, how):
    program = tmp_path / "program.py"
    program.write_text(MANAGER)
    with subprocess.Popen([sys.executable, str(program), how], stdout=subprocess.PIPE) as rank:
        manager = int(rank.stdout.readline())
        try:
            # What it holds is closed only when both are gone.
            ended = bool(select.select([rank.stdout], [], [], 30 if how == "bound" else 2)[0])
            # Where it ends by itself as well, Python has mended it, and what binds it can go.
            assert ended == (how == "bound")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(manager, signal.SIGKILL)


#: A manager that does not end in the second that Python gives it, as on a busy node.
SLOW_MANAGER = """
import multiprocessing.util, time
from multiprocessing.managers import SyncManager
from cosmos_hpc.worker.children import end_with_a_killed_child, let_managers_end_with_this_process

def slow():
    multiprocessing.util.Finalize(None, time.sleep, args=(30,), exitpriority=10)

if __name__ == "__main__":
    end_with_a_killed_child()
    let_managers_end_with_this_process()
    manager = SyncManager()
    manager.start(slow)
    queue = manager.Queue()
    print("all the work is done", flush=True)
"""


def test_a_manager_that_is_slow_to_end_is_no_failure(tmp_path):
    program = tmp_path / "program.py"  # a manager's process imports it
    program.write_text(SLOW_MANAGER)
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "all the work is done\n"
    assert (done.returncode, "SIGKILL" in done.stderr) == (0, False), done.stderr
