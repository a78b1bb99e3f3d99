"""Runs one task of one stage: ``python -m cosmos_hpc.worker SPEC [TASK]``.

The worker never parses the command line of the login side; it reads the spec, a file of the run
folder.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from cosmos_hpc import files
from cosmos_hpc.config import validate
from cosmos_hpc.errors import CosmosError, explain_os_error
from cosmos_hpc.recipe import Recipe
from cosmos_hpc.runs import RunFolder


def _run(stage: str, run: RunFolder, recipe: Recipe, task: int) -> None:
    # Imported late: each stage brings in only the libraries that it needs.
    if stage == "download":
        from cosmos_hpc.worker.download import download

        download(run, recipe)
    elif stage == "preprocess":
        from cosmos_hpc.worker.preprocess import preprocess

        preprocess(run, recipe, task)
    elif stage == "finalize":
        from cosmos_hpc.worker.finalize import finalize

        finalize(run, recipe)
    elif stage == "train":
        from cosmos_hpc.worker.train import train

        train(run, recipe)
    else:
        raise CosmosError(f"unknown stage {stage!r}")


def _stop(number: int, _: Any) -> None:
    """Leave through the normal exits, so that locks and files are closed."""
    raise SystemExit(128 + number)


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the process that started this one dies."""
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit("the process that started this one is gone")


def main(arguments: list[str]) -> int:
    """Run a task; the exit code is 0 when it is done, 1 when it failed."""
    spec_path = Path(arguments[0])
    task = int(arguments[1]) if len(arguments) > 1 else 0
    spec = files.read_json(spec_path)
    stage, run = spec["stage"], RunFolder(spec_path.resolve().parents[1])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    if os.environ.get("COSMOS_HPC_DIE_WITH_PARENT"):
        _die_with_parent()
    error = run.error(stage, task)
    try:
        error.unlink(missing_ok=True)
        recipe = validate(Recipe, spec["recipe"], str(spec_path))
        _run(stage, run, recipe, task)
        return 0
    except CosmosError as e:
        reason = str(e)
    except OSError as e:
        traceback.print_exc()
        reason = explain_os_error(e, stage)
    except Exception as e:
        traceback.print_exc()
        reason = f"{type(e).__name__}: {e}"
    print(f"error: {reason}", file=sys.stderr, flush=True)
    try:
        files.write_atomic(error, reason + "\n")
    except OSError as e:
        print(f"(the reason could not be written to {error}: {e})", file=sys.stderr)
    return 1


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="The pynvml package is deprecated")
    raise SystemExit(main(sys.argv[1:]))
