"""What must be changed in NeMo and Megatron, in one place; each names what is wrong upstream."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from megatron.core.dist_checkpointing import exchange_utils, mapping, validation
from nemo.collections.llm.peft import lora
from nemo.collections.llm.peft import utils as peft_utils
from nemo.lightning.megatron_parallel import MegatronParallel


class _Numpy:
    """NumPy as Megatron knows it."""

    product = staticmethod(np.prod)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def multiply_shapes() -> None:
    """Let Megatron save under NumPy 2.

    Megatron-Core 0.15.3 calls ``numpy.product`` where it checks and distributes the tensors of a
    checkpoint of several ranks; NumPy 2 has only ``numpy.prod``. The steps would be done before
    that shows.
    """
    for module in (exchange_utils, mapping, validation):
        module.np = _Numpy()


def add_adapters_without_transformer_engine() -> None:
    """Let NeMo's LoRA adapt Megatron's own layers where Transformer Engine is not installed.

    NeMo 2.7.3 asks its stand-in for the library for a class, which raises; and it takes Megatron's
    stand-ins for the library's layers for these, which are no classes to compare with.
    """
    if not lora.HAVE_TE:
        lora.te = SimpleNamespace(Linear=None)
        peft_utils.HAVE_TE = False


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
