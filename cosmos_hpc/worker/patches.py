"""What must be changed in NeMo, in one place; each change names what is wrong upstream."""

from __future__ import annotations

import torch
from nemo.lightning.megatron_parallel import MegatronParallel


def synchronize_before_ddp() -> None:
    """Wait for the weights before Megatron's DDP copies them.

    NeMo 2.7.3 builds DDP on a side stream that does not wait for the one which initialises the
    weights: a large model's parameter buffers copy unfinished weights, and the loss is NaN.
    """
    original = MegatronParallel.init_ddp

    def init_ddp(self: MegatronParallel) -> None:
        torch.cuda.synchronize()
        original(self)
        torch.cuda.synchronize()

    MegatronParallel.init_ddp = init_ddp
