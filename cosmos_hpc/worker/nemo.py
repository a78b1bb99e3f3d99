"""The name by which checkpoints of earlier versions know :mod:`cosmos_hpc.worker.training.nemo`.

NeMo writes the paths of a model's classes and functions into a checkpoint's ``context``, and
imports them when somebody loads it.
"""

from cosmos_hpc.worker.training.nemo import CosmosConfig, CosmosModel, _data_step, _forward_step

__all__ = ["CosmosConfig", "CosmosModel", "_data_step", "_forward_step"]
