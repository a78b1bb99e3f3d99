"""This machine, in processes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cosmos_hpc.backends.base import Request
from cosmos_hpc.backends.findings import Finding, missing_here, python_finding
from cosmos_hpc.backends.machine import Array, MachineBackend, MachineJob
from cosmos_hpc.backends.machine_profile import MachineCluster
from cosmos_hpc.config.clusters import MACHINE_DEFAULTS
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.requirements import check_installed
from cosmos_hpc.runs.stages import RunStage, task_command

if TYPE_CHECKING:
    import nemo_run


class LocalCluster(MachineCluster, frozen=True, kw_only=True):
    """This machine, in processes."""

    default_words: ClassVar[Mapping[str, str]] = {
        **MACHINE_DEFAULTS,
        "kind": "of a profile that names none",
    }

    kind: Literal["local"]


class LocalBackend(MachineBackend[LocalCluster]):
    """Array tasks through submitit, single tasks as NeMo-Run's experiments."""

    schema = LocalCluster

    def check(self) -> list[Finding]:
        """GPUs, folders, and the libraries of the stages."""
        return [*super().check(), python_finding(sys.executable, missing_here())]

    def open(self, request: Request) -> None:
        """The libraries of the stages, in the Python that submits them."""
        check_installed(request.stages)

    def array(
        self, run: RunFolder, stage: RunStage, opened: Any, threads: int, gpus: list[str]
    ) -> Array:
        """Processes that end with this one."""
        from cosmos_hpc.backends.submitit_arrays import LocalArray

        environment = {"OMP_NUM_THREADS": str(threads), "COSMOS_HPC_DIE_WITH_PARENT": "1"}
        return LocalArray(run, stage, environment, gpus)

    def job(self, run: RunFolder, stage: RunStage, opened: Any, gpus: list[str]) -> MachineJob:
        """A process, or torchrun and its ranks."""
        from cosmos_hpc.backends.experiments import LocalJob

        return LocalJob(run, stage, {"CUDA_VISIBLE_DEVICES": ",".join(gpus)})

    def command(
        self, run: RunFolder, stage: RunStage, task: int, opened: Any, gpus: list[str]
    ) -> list[str]:
        """The worker, under torchrun with several ranks."""
        python, *script = task_command(run, stage, task)
        return [python, *torchrun_flags(stage), *script]

    def executor(
        self, stage: RunStage, run: RunFolder | None, number: int
    ) -> nemo_run.LocalExecutor:
        """Processes that see the GPUs of the task; everything else is inherited."""
        from cosmos_hpc.backends.experiments import gpus_of, local_executor

        gpus = gpus_of(self.cluster, stage, number)
        return local_executor({"CUDA_VISIBLE_DEVICES": ",".join(gpus)})

    def task(self, run: RunFolder, stage: RunStage, number: int) -> nemo_run.Script:
        """The worker, under torchrun with several ranks."""
        from cosmos_hpc.backends.experiments import task, thread_variables

        check_installed([stage.name])
        return task(run, stage, thread_variables(self.cluster, stage), number)


def torchrun_flags(stage: RunStage) -> list[str]:
    """Arguments of a Python that starts a script on all ranks of this machine."""
    if stage.ranks == 1:
        return []
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={stage.ranks}"]
