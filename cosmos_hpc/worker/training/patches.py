"""What must be changed in NeMo and Megatron, in one place; each names what is wrong upstream."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from megatron.core.dist_checkpointing import exchange_utils, mapping, validation
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
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


def load_steps_of_adam() -> None:
    """Let Megatron load a checkpoint of the distributed optimizer over PyTorch's Adam.

    Without Apex and Transformer Engine, Megatron-Core 0.15.3 reads the step of an optimizer that
    has not stepped yet, and finds none; and it looks for a step beside every parameter's state,
    which it does not save. No run could be resumed on a GPU. All parameters would then share one
    step, which is counted up for each of them.
    """
    read, write = (
        DistributedOptimizer.sharded_state_dict,
        DistributedOptimizer._set_main_param_and_optimizer_states,
    )

    def sharded_state_dict(
        self: DistributedOptimizer, model: Any, is_loading: bool = False, **kwargs: Any
    ) -> Any:
        adam = self.optimizer
        if is_loading and isinstance(adam, torch.optim.Adam | torch.optim.AdamW):
            self.init_state_fn(adam, self.config)
            for state in adam.state.values():
                state.setdefault("step", torch.zeros(()))
        return read(self, model, is_loading=is_loading, **kwargs)

    def set_states(self: DistributedOptimizer, parameter: Any, tensors: dict[str, Any]) -> None:
        group, place = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        # The step itself has been loaded before, from the groups of parameters.
        if "step" in state:
            state["step"] = state["step"].clone()
            tensors = {"step": state["step"], **tensors}
        write(self, parameter, tensors)

    DistributedOptimizer.sharded_state_dict = sharded_state_dict
    DistributedOptimizer._set_main_param_and_optimizer_states = set_states
