"""What profiles of this machine say, and which of its GPUs and cores a task gets."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.gpus import NODE_GPUS, this_gpu, visible_gpus
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.annotations import NonNegativeInt
from cosmos_hpc.utils.progress import count_of


class MachineCluster(Cluster, frozen=True, kw_only=True):
    """This machine alone: ``submit`` runs everything on it, and waits.

    Attributes:
        gpus: GPUs of this machine that tasks may use.
    """

    gpus: NonNegativeInt
    takes_all_gpus: ClassVar[bool] = True

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """All GPUs."""
        return {"gpus": len(visible_gpus())}

    @classmethod
    def completed(cls, data: dict[str, Any]) -> dict[str, Any]:
        """As many tasks as GPUs, or cores without any; a type of GPUs stands for a node of them."""
        gpus, cores = data["gpus"], max(2, len(os.sched_getaffinity(0)))
        elsewhere = not gpus and data.get("gpu")
        if elsewhere:
            gpus = NODE_GPUS  # somebody on a login node asks what a node of such GPUs would do
        parallel = data.get("parallel", gpus if isinstance(gpus, int) and gpus else cores)
        if elsewhere and isinstance(parallel, int):
            parallel = min(parallel, gpus)
        this = {"gpu": this_gpu()} if gpus and visible_gpus() else {}
        return {**this, **data, "gpus": gpus, "parallel": parallel}

    @property
    def max_gpus(self) -> int:
        """All of them."""
        return self.gpus

    @property
    def node_gpus(self) -> int:
        """GPUs of this machine, or of the usual node; planning also looks beyond it."""
        return max(self.gpus, NODE_GPUS)

    def _fits_together(self) -> None:
        if self.gpus and self.parallel > self.gpus:
            raise ValueError(
                f"parallel={self.parallel} array tasks need as many GPUs, and gpus={self.gpus}"
            )


def gpus_here(cluster: MachineCluster) -> list[str]:
    """The GPUs of this machine that a profile may use, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        RequestError: there are fewer than it says.
    """
    visible = visible_gpus()
    if len(visible) < cluster.gpus:
        raise RequestError(
            f"cluster {cluster.name} says {count_of(cluster.gpus, 'GPU')}, and this machine has "
            f"{len(visible)}; cluster.gpu plans for GPUs that are elsewhere"
        )
    return visible[: cluster.gpus]


def threads_of(cluster: MachineCluster) -> int:
    """Threads per array task; several tasks share the cores."""
    return max(1, len(os.sched_getaffinity(0)) // cluster.parallel)
