"""AdamW that reads the gradient and writes the model's weight in the same pass over memory.

Without Apex and Transformer Engine, Megatron's distributed optimizer uses PyTorch's AdamW: it
first scales the gradient in place, then updates float32 weights, then copies them to the model's
bf16 ones, and waits for the norm of the gradient between. Here the norm stays on the GPU, and one
kernel per weight, of PyTorch's compiler, does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import optimizer as mixed_precision
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from cosmos_hpc.models.fusions import total_norm


def use_fused_adam() -> None:
    """Let Megatron's distributed optimizer use :class:`FusedAdam` from now on.

    Where Apex or Transformer Engine is installed, which bring a fused AdamW, nothing changes.
    """
    if not megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        return
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
    megatron_optimizer.Adam = FusedAdam
    mixed_precision.get_grad_norm_fp32 = gradient_norm
    mixed_precision.clip_grad_by_total_norm_fp32 = scale_in_step
    make = DistributedOptimizer.__init__
    copy = DistributedOptimizer._copy_main_params_to_model_params

    def make_with_places(self: DistributedOptimizer, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if not self.is_stub_optimizer:
            weights = chain.from_iterable(self.shard_fp32_from_float16_groups)
            models = chain.from_iterable(self.model_float16_groups)
            for weight, model in zip(weights, models, strict=True):
                weight.model_weight = _shard(self, model)

    def copy_others(self: DistributedOptimizer) -> None:
        # FusedAdam has written those in bf16.
        if not self.is_stub_optimizer and any(self.model_fp32_groups):
            copy(self)

    DistributedOptimizer.__init__ = make_with_places
    DistributedOptimizer._copy_main_params_to_model_params = copy_others


def _shard(optimizer: DistributedOptimizer, parameter: torch.nn.Parameter) -> Tensor:
    """This rank's part of a model's weight, in the buffer that is gathered from all ranks."""
    part = optimizer._get_model_param_range_map(parameter)["gbuf_world_in_bucket"]
    buffer, _, bucket = optimizer.model_param_gbuf_map[parameter]
    weights: Tensor = optimizer.buffers[buffer].buckets[bucket].param_data
    return weights.view(-1)[part.start : part.end]


class AdamInOneKernel(pl.Callback):
    """Lets PyTorch's AdamW update in one kernel, where it is used.

    Its default needs several times the memory of the weights on the way.
    """

    # Not when the training starts: beside adapters there is no optimizer yet.
    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Set it in the groups of parameters."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if "foreach" in group:  # PyTorch's own
                    group.update(foreach=False, fused=True)


class FusedAdam(torch.optim.AdamW):
    """PyTorch's AdamW (Loshchilov and Hutter, 2019), with the same state, in a kernel per weight.

    Besides its gradient, a parameter may have ``gradient_scale``, a float32 scalar that the
    gradient is multiplied by, and ``model_weight``, a tensor of as many elements that gets a copy
    of the updated weight.
    """

    def __init__(self, params: Any, adam_w_mode: bool = True, **settings: Any) -> None:
        if not adam_w_mode:
            raise ValueError("FusedAdam decays weights apart from their gradients only")
        super().__init__(params, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; ``closure`` is not called."""
        for group in self.param_groups:
            factors: dict[float, Tensor] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state_of(parameter)
                state["step"] = state["step"].cpu() + 1
                step = float(state["step"])
                if step not in factors:
                    factors[step] = _factors(group, step, parameter.device)
                _step(parameter, state, factors[step])

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _factors(group: dict[str, Any], step: float, device: torch.device) -> Tensor:
    """What :func:`_update` multiplies with, float32, sent without waiting for the GPU."""
    first, second = group["betas"]
    rate = group["lr"]
    values = (
        1 - first,
        1 - second,
        1 - rate * group["weight_decay"],
        rate / (1 - first**step),
        (1 - second**step) ** -0.5,
        group["eps"],
    )
    factors = torch.tensor(values, dtype=torch.float32)
    if device.type == "cuda":
        factors = factors.pin_memory()
    return factors.to(device, non_blocking=True)


def _step(parameter: Tensor, state: dict[str, Tensor], factors: Tensor) -> None:
    copy = getattr(parameter, "model_weight", None)
    # One-dimensional, so that one compiled kernel serves weights of all shapes.
    _update(
        parameter.view(-1),
        state["exp_avg"].view(-1),
        state["exp_avg_sq"].view(-1),
        parameter.grad.view(-1),  # type: ignore[union-attr]
        # Not the weight itself: the compiler cannot write to parts of one buffer by two names.
        None if copy is None else copy.view(-1),
        getattr(parameter, "gradient_scale", None),
        factors,
    )


@torch.compile(dynamic=True)
def _update(
    weight: Tensor,
    average: Tensor,
    square: Tensor,
    gradient: Tensor,
    copy: Tensor | None,
    scale: Tensor | None,
    factors: Tensor,
) -> None:
    new, of_average, decay, rate, correction, eps = factors.unbind()
    scaled = gradient if scale is None else gradient * scale
    average.lerp_(scaled, new)
    square.lerp_(scaled.square(), of_average)
    weight.mul_(decay).sub_(rate * average / (square.sqrt() * correction + eps))
    if copy is not None:
        copy.copy_(weight)


def gradient_norm(
    gradients: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    grad_stats_parallel_group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    """The norm of all ranks' gradients together, a float32 scalar that stays on the GPU.

    In place of Megatron's function of these arguments, which waits for the GPU.
    """
    own = [gradients] if isinstance(gradients, Tensor) else list(gradients)
    # A rank may hold no part of what is trained.
    total = total_norm(own).square() if own else torch.zeros((), device="cuda")
    torch.distributed.all_reduce(total, group=grad_stats_parallel_group)
    return total.sqrt()


def scale_in_step(
    parameters: Iterable[Tensor], max_norm: float, total_norm: Tensor, use_decoupled_grad: bool
) -> None:
    """Let the next step of :class:`FusedAdam` scale gradients down to the largest norm.

    In place of Megatron's function of these arguments, which does so at once.
    """
    scale = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        parameter.gradient_scale = scale  # type: ignore[attr-defined]
