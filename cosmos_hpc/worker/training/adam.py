"""AdamW that reads the gradient and writes the model's weight in the same pass over memory.

Without Apex and Transformer Engine, Megatron's distributed optimizer would use PyTorch's AdamW: it
first scales the gradient in place, then updates float32 weights, then copies them to the model's
bf16 ones, and waits for the norm of the gradient between. Here the norm stays on the GPU, and one
kernel per weight, of PyTorch's compiler, does the rest. Of a float32 weight only what the bf16 one
lacks is kept beside it, as Transformer Engine's AdamW does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import OptimizerConfig, distrib_optimizer
from megatron.core.optimizer import optimizer as mixed_precision
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from cosmos_hpc.models.fusions import total_norm


def use_fused_adam(moments: torch.dtype = torch.float32) -> None:
    """Let Megatron's distributed optimizer use :class:`FusedAdam` from now on.

    Args:
        moments: dtype of Adam's moments.
    """
    FusedAdam.moments = moments
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
    megatron_optimizer.Adam = FusedAdam
    # Where these are installed, Megatron looks for the step where their AdamW has it.
    distrib_optimizer.HAVE_APEX_OR_TE = False
    mixed_precision.get_grad_norm_fp32 = gradient_norm
    mixed_precision.clip_grad_by_total_norm_fp32 = scale_in_step
    make = DistributedOptimizer.__init__

    def make_precision_aware(
        self: DistributedOptimizer,
        optimizer: Any,
        config: OptimizerConfig,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        # A copy: the checkpoint keeps what the training was configured with.
        config = copy.copy(config)
        if config.bf16:
            # What Megatron calls an optimizer that updates bf16 weights itself. It is set here, as
            # its own check of these fields knows Transformer Engine's alone.
            config.use_precision_aware_optimizer = True
            config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
            config.exp_avg_dtype = config.exp_avg_sq_dtype = FusedAdam.moments
        make(self, optimizer, config, *args, **kwargs)

    DistributedOptimizer.__init__ = make_precision_aware


def moment_settings(moments: torch.dtype) -> dict[str, Any]:
    """Fields of Megatron's ``OptimizerConfig`` for Transformer Engine's AdamW.

    Args:
        moments: dtype of Adam's moments.
    """
    if moments == torch.float32:
        return {}
    return {
        "use_precision_aware_optimizer": True,
        "exp_avg_dtype": moments,
        "exp_avg_sq_dtype": moments,
    }


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
    """PyTorch's AdamW (Loshchilov and Hutter, 2019), in a kernel per weight.

    A parameter may have its gradient as ``decoupled_grad``, in whatever dtype, and a
    ``gradient_scale``, a float32 scalar that it is multiplied by. The state is that of PyTorch's,
    and of a bf16 parameter also ``master_param``, the low half (:func:`split`) of the float32
    weight. The methods that PyTorch's lacks are those that Megatron asks for.

    Attributes:
        moments: dtype in which moments of bf16 parameters are kept.
    """

    moments = torch.float32

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
                gradient = _gradient(parameter)
                if gradient is None:
                    continue
                self.initialize_state(parameter)
                state = self.state[parameter]
                state["step"] = state["step"].cpu() + 1
                step = float(state["step"])
                if step not in factors:
                    factors[step] = _factors(group, step, parameter.device)
                _step(parameter, gradient, state, factors[step])

    def initialize_state(self, parameter: Tensor) -> None:
        """Give a parameter a state, unless it has one."""
        state = self.state[parameter]
        if state:
            return
        dtype = self.moments if parameter.dtype == torch.bfloat16 else parameter.dtype
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype)
        state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype)
        if parameter.dtype == torch.bfloat16:
            state["master_param"] = torch.zeros_like(parameter, dtype=torch.int16)

    def get_unscaled_state(self, parameter: Tensor, name: str) -> Tensor:
        """A part of the state as it is kept."""
        value: Tensor = self.state[parameter][name]
        return value

    def set_scaled_state(self, parameter: Tensor, name: str, value: Tensor) -> None:
        """Copy to a part of the state."""
        self.initialize_state(parameter)
        self.state[parameter][name].copy_(value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As PyTorch's, without changing the state to the dtype of the parameters."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, state in state_dict["state"].items():
            self.state[parameters[number]] = state


def joined(high: Tensor, low: Tensor) -> Tensor:
    """A float32 weight from its two halves: the inverse of :func:`split`."""
    return high.int().bitwise_left_shift_(16).add_(low).view(torch.float32)


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of a float32 weight, both int16.

    The high one has the bits of the weight in bf16, rounded to the nearest; the low one, which may
    be negative, is what these lack. They are those of Transformer Engine.
    """
    bits = weight.view(torch.int32)
    # Rounding would make another number of a NaN that has all of its bits set, as a GPU's has.
    high = torch.where(weight.isnan(), 0x7FC0, (bits + 0x8000) >> 16)
    return high.to(torch.int16), bits.to(torch.int16)


def _gradient(parameter: Tensor) -> Tensor | None:
    decoupled: Tensor | None = getattr(parameter, "decoupled_grad", None)
    return parameter.grad if decoupled is None else decoupled


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


def _step(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], factors: Tensor) -> None:
    # One-dimensional, so that one compiled kernel serves weights of all shapes.
    weight, low = parameter.view(-1), state.get("master_param")
    _update(
        weight if low is None else weight.view(torch.int16),
        None if low is None else low.view(-1),
        state["exp_avg"].view(-1),
        state["exp_avg_sq"].view(-1),
        gradient.view(-1),
        getattr(parameter, "gradient_scale", None),
        factors,
    )


@torch.compile(dynamic=True)
def _update(
    weight: Tensor,
    low: Tensor | None,
    average: Tensor,
    square: Tensor,
    gradient: Tensor,
    scale: Tensor | None,
    factors: Tensor,
) -> None:
    new, of_average, decay, rate, correction, eps = factors.unbind()
    scaled = gradient.float() if scale is None else gradient.float() * scale
    first = torch.lerp(average.float(), scaled, new)
    second = torch.lerp(square.float(), scaled.square(), of_average)
    exact = weight if low is None else joined(weight, low)
    updated = exact * decay - rate * first / (second.sqrt() * correction + eps)
    average.copy_(first)
    square.copy_(second)
    if low is None:
        weight.copy_(updated)
    else:
        new_high, new_low = split(updated)
        weight.copy_(new_high)
        low.copy_(new_low)


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
