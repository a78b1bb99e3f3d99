"""The one place that knows NeMo-Run: single-job stages as tasks on its executors."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_hpc.runs import RunFolder
from cosmos_hpc.stages import Stage, task_arguments

if TYPE_CHECKING:
    import nemo_run


def task(run: RunFolder, stage: Stage) -> nemo_run.Script:
    """A stage as a NeMo-Run task: the worker's module with its spec.

    Args:
        run: an existing run folder.
        stage: a stage of one task.
    """
    import nemo_run

    return nemo_run.Script(
        path="cosmos_hpc.worker",
        m=True,
        entrypoint="python",
        args=task_arguments(run, stage),
        env={"PYTHONPATH": python_path(run)},
    )


def local_executor(stage: Stage) -> nemo_run.LocalExecutor:
    """NeMo-Run's executor for a stage on this machine, through torchrun when it has ranks."""
    import nemo_run

    return nemo_run.LocalExecutor(
        ntasks_per_node=stage.ranks,
        launcher="torchrun" if stage.ranks > 1 else None,
        # The default packager fails outside a git repository; the run's code is a snapshot already.
        packager=nemo_run.Packager(),
    )


def python_path(run: RunFolder) -> str:
    """PYTHONPATH of a worker: the run's snapshot of this package before what was there."""
    return os.pathsep.join(filter(None, [str(run.code()), os.environ.get("PYTHONPATH", "")]))


class LocalJob:
    """A stage that runs on this machine as a NeMo-Run experiment; ends with the ``with`` block.

    Args:
        run: the run folder; the experiment is kept in it.
        stage: a stage of one task.
    """

    def __init__(self, run: RunFolder, stage: Stage) -> None:
        # Read when NeMo-Run is first imported: its job registry would go to the home folder.
        os.environ.setdefault("NEMORUN_HOME", str(run.path.parent / ".nemo_run"))
        # Where torch is installed, NeMo-Run imports it, and it warns of a package that NeMo brings.
        warnings.filterwarnings("ignore", message="The pynvml package is deprecated")
        import nemo_run

        _prepend_path(str(Path(sys.executable).parent))
        self._stage = stage
        self._task, self._executor = task(run, stage), local_executor(stage)
        self._experiment = nemo_run.Experiment(
            f"{run.name}-{stage.name}",
            base_dir=str(run.path / "nemo_run"),
            log_level="ERROR",
            clean_mode=True,
            enable_goodbye_message=False,
            skip_status_at_exit=True,
            serialize_metadata_for_scripts=False,
        )

    def __enter__(self) -> LocalJob:
        self._experiment.__enter__()
        self._experiment.add(self._task, executor=self._executor, name=self._stage.name)
        self._experiment.run()
        return self

    def __exit__(self, *error: Any) -> None:
        # Waits for the job, so cancel it first where it should not end by itself.
        self._experiment.__exit__(*error)

    @property
    def log(self) -> Path | None:
        """File with both output streams; None before the job has begun."""
        folder = Path(self._experiment.jobs[0].executor.job_dir)
        return next(folder.glob("nemo_run/*/*/0/combined.log"), None)

    def running(self) -> bool:
        """Whether the job has not ended yet."""
        state = self._experiment.status(return_dict=True)[self._stage.name]["status"]
        return state.name in ("RUNNING", "SUBMITTED", "PENDING", "UNSUBMITTED")

    def cancel(self) -> None:
        """Stop the job and its ranks, and wait until they are gone."""
        self._experiment.cancel(self._stage.name)


def _prepend_path(folder: str) -> None:
    """NeMo-Run starts ``python`` and ``torchrun`` by name: those of this environment come first."""
    path = os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != folder:
        os.environ["PATH"] = os.pathsep.join([folder, path])
