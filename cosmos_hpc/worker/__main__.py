"""Runs one task of one stage: ``python -m cosmos_hpc.worker SPEC [TASK]``.

The worker never parses the command line of the login side; it reads the spec, a file of the run
folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import CosmosError, Stopped, explain_os_error
from cosmos_hpc.runs.folder import STOP_VARIABLE, RunFolder
from cosmos_hpc.runs.stages import STAGES, is_done
from cosmos_hpc.utils import files
from cosmos_hpc.utils.imports import end_quickly, large_imports, load
from cosmos_hpc.utils.progress import say
from cosmos_hpc.utils.settings import validate

#: Seconds between looks for such a request.
_LOOK_EVERY = 1.0
#: What a job says of the node, and of where its cluster is.
_OF_THE_NODE = ("SLURM_CPUS_ON_NODE", "SLURM_CONF")


def _run(stage: str, run: RunFolder, recipe: Recipe, task: int) -> None:
    # Imported late: each stage brings in only the libraries that it needs.
    with large_imports(freeze=True):
        work = load(STAGES[stage].work)
    work(run, recipe, task)


def _run_alone(stage: str, run: RunFolder, recipe: Recipe, task: int) -> None:
    """Run a task unless it is done, while no other process works on it.

    A submit that was killed may leave workers behind; those of the next one wait for them. Of
    several ranks the first holds the lock, and the others wait until it does: only then is it
    decided, and for all alike, whether there is anything left to do and where to resume.
    """
    path = run.task_lock(stage, task)
    attempt = f"{os.environ.get('TORCHELASTIC_RUN_ID')}:{os.environ.get('MASTER_PORT')}"

    def waiting(holder: str) -> None:
        say(f"{stage} task {task} is being worked on by {holder}; waiting for it")

    lock: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if int(os.environ.get("RANK", "0")) == 0:
        lock = files.lock(path, waiting, note=attempt)
    else:
        while not path.exists() or attempt not in path.read_text():
            time.sleep(0.2)
    with lock:
        if is_done(run, recipe, stage, task):
            say(f"{stage} task {task} is done already")
        elif run.stop_requested():
            raise Stopped("stopped before it began")
        else:
            if STAGES[stage].stops_anywhere:
                _leave_when_asked(run)
            _run(stage, run, recipe, task)


def _leave_when_asked(run: RunFolder) -> None:
    """End this process when the run is cancelled or the job nears its end.

    For stages that keep what they have done as after a kill, and may wait long in a library.
    """

    def watch() -> None:
        while not run.stop_requested():
            time.sleep(_LOOK_EVERY)
        say("stopped; what is done so far is kept")
        _tell_script("stopped")
        os._exit(Stopped.exit_code)

    threading.Thread(target=watch, daemon=True).start()


def _stop(number: int, _: Any) -> None:
    """Leave at the next safe point where that can be asked for, else through the normal exits."""
    stop = os.environ.get(STOP_VARIABLE)
    if not stop:
        # Locks and files are closed on the way.
        raise SystemExit(128 + number)
    # Slurm gives a job some time before it kills it. The script decides what is next.
    Path(stop).touch()


def _tell_script(how: str) -> None:
    """Tell the script of a Slurm job that its task has ``begun``, is ``done`` or ``stopped``."""
    stop = os.environ.get(STOP_VARIABLE)
    if stop:
        Path(f"{stop}.{how}").touch()


def _lost_a_peer(error: Exception) -> bool:
    """Whether a rank only failed because another was gone: what ended that one is the reason."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    by_type = isinstance(error, (ConnectionError, EOFError)) or type(error).__name__.startswith(
        "Dist"
    )
    return by_type or any(text in str(error) for text in ("closed by peer", "reset by peer"))


def _leave_allocation() -> None:
    """Forget the job in whose shell a run on this machine was started.

    Lightning would take its counts of nodes and tasks for those of the training. How many cores it
    has on this node stays: not every cluster confines a job to them.
    """
    if os.environ.get(STOP_VARIABLE):
        return  # started by a script of that very job
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PMI_", "PMIX_")) and name not in _OF_THE_NODE:
            del os.environ[name]


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the process that started this one dies."""
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit("the process that started this one is gone")


def main(arguments: list[str]) -> int:
    """Run a task; the exit code is 0 when it is done, 1 when it failed, 75 when it was stopped."""
    end_quickly()
    warnings.filterwarnings("ignore", message="The pynvml package is deprecated")
    # Before torch is imported: threads that spin while they wait slow each other down many times
    # where others work on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    spec_path = Path(arguments[0])
    task = int(arguments[1]) if len(arguments) > 1 else 0
    spec = files.read_json(spec_path)
    if spec is None:
        print(f"error: there is no spec {spec_path}", file=sys.stderr)
        return 2
    stage, run = spec["stage"], RunFolder(spec_path.resolve().parents[1])
    if stage not in STAGES:
        print(f"error: {spec_path} is of a stage {stage!r}, which there is not", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    _tell_script("begun")
    _leave_allocation()
    if os.environ.get("COSMOS_HPC_DIE_WITH_PARENT"):
        _die_with_parent()
    error = run.error(stage, task)
    try:
        recipe = validate(Recipe, spec["recipe"], str(spec_path))
        _run_alone(stage, run, recipe, task)
        _tell_script("done")
        return 0
    except Stopped as e:
        say(str(e))
        _tell_script("stopped")
        return e.exit_code
    except CosmosError as e:
        reason = str(e)
    except Exception as e:
        traceback.print_exc()
        if _lost_a_peer(e):
            return 1
        reason = f"{type(e).__name__}: {e}"
        if isinstance(e, OSError):
            reason = explain_os_error(e, stage)
    print(f"error: {reason}", file=sys.stderr, flush=True)
    try:
        # The first rank to fail has the reason; the others fail because it is gone.
        if not error.exists():
            files.write_atomic(error, reason + "\n")
    except OSError as e:
        print(f"(the reason could not be written to {error}: {e})", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
