"""Fused kernels for training on a GPU, of work that is otherwise several passes over memory.

They are PyTorch's own, compiled or of cuBLAS, but one of Triton
(:mod:`cosmos_hpc.models.attention_inputs`): neither Apex nor Transformer Engine is needed. Each
applies to the process, and computes in float32 between what it reads and writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.optimizer import clip_grads
from megatron.core.tensor_parallel import layers as megatron_layers
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.layers import RMSNorm, RotatedSelfAttention
from cosmos_hpc.models.loss import token_losses
from cosmos_hpc.models.positions import turns

#: Shapes that each kernel may be compiled for: hidden states, queries, keys and those of the text,
#: in training and in validation. Beyond its limit PyTorch would fall back to unfused ones.
_SHAPES = 32
#: Norms of fewer numbers use PyTorch's own kernel. The CPU takes twice as long to start a compiled
#: one, and a step of ranks that share a sample waits for the CPU.
_WORTH_COMPILING = 2**24


def choose_fusions(asked: Sequence[str]) -> list[str]:
    """Those of :data:`cosmos_hpc.models.config.FUSIONS` that are asked for; none without a GPU."""
    return list(asked) if torch.cuda.is_available() else []


def fuse(config: TransformerConfig, fusions: Sequence[str]) -> None:
    """Use fused kernels from now on, in models that are built with ``config``.

    The configuration's fields are set here, not where it is made: a checkpoint keeps how it was
    made, and is also read where there are no such kernels.
    """
    # torch keeps this setting in a module of its own name.
    torch._dynamo.config.recompile_limit = max(_SHAPES, torch._dynamo.config.recompile_limit)
    if "attention_inputs" in fusions:
        # Needs Triton, which there is with a GPU.
        from cosmos_hpc.models.attention_inputs import queries_keys_values

        RotatedSelfAttention.kernel = staticmethod(queries_keys_values)
    if "rotary" in fusions:
        rope_utils._apply_rotary_pos_emb_bshd = apply_rotary
    if "norms" in fusions:
        RMSNorm.kernel = staticmethod(rms_norm)
    if "swiglu" in fusions:
        fused_bias_swiglu.swiglu_back = swiglu_gradient
    if "loss" in fusions:
        CosmosDecoder.fused_losses = staticmethod(token_losses)
    if "gradient_norm" in fusions:
        clip_grads.l2_norm_impl = _total_norm
        clip_grads.multi_tensor_scale_impl = _scale
    if "gradient_accumulation" in fusions:
        config.gradient_accumulation_fusion = True
        if not megatron_layers._grad_accum_fusion_available:
            megatron_layers.fused_weight_gradient_mlp_cuda = AddedByProducts
            megatron_layers._grad_accum_fusion_available = True


def apply_rotary(t: Tensor, freqs: Tensor, *_: Any, **__: Any) -> Tensor:
    """Rotate all channels of queries or keys, by the "rotate half" convention.

    In place of Megatron's function of these arguments, for models without its other variants.

    Args:
        t: ``[s, b, heads, d]``.
        freqs: angles ``[s, 1, 1, d]``, float32, the same in both halves.

    Returns:
        In the shape and dtype of ``t``.
    """
    rotated: Tensor = _Rotary.apply(t, freqs)
    return rotated


class _Rotary(torch.autograd.Function):
    """A rotation; its gradient is turned back by the same angles."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, freqs: Tensor) -> Tensor:
        cosine, sine, back = turns(freqs)
        ctx.save_for_backward(cosine, back)
        # Detached, so that one compiled form serves training and validation.
        return _rotate(t.detach(), cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _rotate(gradient, *ctx.saved_tensors), None


@torch.compile(dynamic=False)
def _rotate(t: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = t.float().chunk(2, dim=-1)
    half = first.shape[-1]
    turned = torch.cat(
        (
            first * cosine[..., :half] - second * sine[..., :half],
            second * cosine[..., half:] + first * sine[..., half:],
        ),
        dim=-1,
    )
    return turned.to(t.dtype)


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor, eps: float) -> Tensor:
    """As :func:`torch.nn.functional.rms_norm` over the last dimension, compiled where that pays."""
    if x.numel() < _WORTH_COMPILING:
        return F.rms_norm(x, shape, weight, eps)
    return _compiled_rms_norm(x, weight, eps)


@torch.compile(dynamic=False)
def _compiled_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight.float()).to(x.dtype)


def swiglu_gradient(gradient: Tensor, y: Tensor) -> Tensor:
    """Gradient of ``silu(gate) * up``, in place of Megatron's function of these arguments.

    That joins its halves so that the compiler reads all inputs once for each of them.

    Args:
        gradient: of the output, ``[..., width]``.
        y: gate and up projection beside each other, ``[..., 2 * width]``.

    Returns:
        In the shape and dtype of ``y``.
    """
    out = torch.empty_like(y)
    _write_swiglu_gradient(gradient, *y.chunk(2, -1), *out.chunk(2, -1))
    return out


@torch.compile(dynamic=False)
def _write_swiglu_gradient(
    gradient: Tensor, gate: Tensor, up: Tensor, of_gate: Tensor, of_up: Tensor
) -> None:
    g, x = gradient.float(), gate.float()
    share = torch.sigmoid(x)
    of_gate.copy_(g * up.float() * share * (1 + x * (1 - share)))
    of_up.copy_(g * x * share)


def _add_product(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
    """Add ``gradient.T @ inputs`` to ``total`` in one product.

    Args:
        inputs: of the layer, ``[tokens, in]``.
        gradient: of its output, ``[tokens, out]`` in the same dtype.
        total: of its weight, ``[out, in]``, in that dtype or float32.
    """
    if total.dtype == inputs.dtype:
        total.addmm_(gradient.t(), inputs)
    else:
        torch.addmm(total, gradient.t(), inputs, out_dtype=total.dtype, out=total)


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of tensors together, a float32 scalar, without waiting for the GPU."""
    norms = torch._foreach_norm(tensors, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack(norms))


def _total_norm(
    _: int, __: Tensor, lists: Sequence[list[Tensor]], *___: Any
) -> tuple[Tensor, None]:
    """The norm of all tensors of the first list together, float32 ``[1]``.

    Megatron's, without Apex and Transformer Engine, waits for the norm of each.
    """
    return total_norm(lists[0])[None], None


def _scale(_: int, __: Tensor, lists: Sequence[list[Tensor]], factor: float) -> None:
    """Write the tensors of the first list times a factor into those of the second one."""
    sources, targets = lists
    if sources is not targets:
        torch._foreach_copy_(targets, sources)
    torch._foreach_mul_(targets, factor)


class AddedByProducts:
    """In place of Apex's extension: products that add to the gradient of a weight themselves.

    Without it, a product writes a bf16 gradient, which another kernel reads and adds.
    """

    wgrad_gemm_accum_fp32 = wgrad_gemm_accum_fp16 = staticmethod(_add_product)
