"""The one place that knows NeMo-Run: single-job stages as tasks on its executors."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_hpc.runs import RunFolder
from cosmos_hpc.stages import Stage, task_script

if TYPE_CHECKING:
    import nemo_run


def task(run: RunFolder, stage: Stage, environment: dict[str, str]) -> nemo_run.Script:
    """A stage as a NeMo-Run task on one machine: its script, under torchrun with several ranks.

    torchrun is called here and not by NeMo-Run's launcher, which quotes arguments for a shell that
    a local job does not have: paths with spaces would break.

    Args:
        run: an existing run folder.
        stage: a stage of one task.
        environment: variables on top of the submitting process's own; no secrets, NeMo-Run keeps
            them.
    """
    import nemo_run

    script = task_script(run, stage)
    if stage.ranks == 1:
        return nemo_run.Script(
            path=script[0], args=script[1:], entrypoint=sys.executable, env=environment
        )
    flags = ["--standalone", f"--nproc-per-node={stage.ranks}"]
    return nemo_run.Script(
        path=flags[0],
        args=[*flags[1:], *script],
        entrypoint=str(Path(sys.executable).with_name("torchrun")),
        env=environment,
    )


def local_executor() -> nemo_run.LocalExecutor:
    """NeMo-Run's executor for this machine."""
    import nemo_run

    # The default packager fails outside a git repository; the run's code is a snapshot already.
    return nemo_run.LocalExecutor(packager=nemo_run.Packager())


class LocalJob:
    """A stage that runs on this machine as a NeMo-Run experiment; ends with the ``with`` block.

    Args:
        run: the run folder; the experiment is kept in it.
        stage: a stage of one task.
        environment: see :func:`task`.
    """

    def __init__(self, run: RunFolder, stage: Stage, environment: dict[str, str]) -> None:
        # Read when NeMo-Run is first imported: its job registry would go to the home folder.
        os.environ.setdefault("NEMORUN_HOME", str(run.path.parent / ".nemo_run"))
        # Where torch is installed, NeMo-Run imports it, and it warns of a package that NeMo brings.
        warnings.filterwarnings("ignore", message="The pynvml package is deprecated")
        import nemo_run

        self._stage = stage
        self._task, self._executor = task(run, stage, environment), local_executor()
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
        try:
            self._experiment.add(self._task, executor=self._executor, name=self._stage.name)
            self._experiment.run()
        except BaseException:
            # Interrupted here, the job may have begun, and nobody else would stop it.
            self.cancel()
            self._experiment.__exit__(None, None, None)
            raise
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
