"""The loss of every token in two passes over the logits, without a copy of them in float32.

Compiled by PyTorch's own compiler, for training on a GPU; see :mod:`cosmos_hpc.models.fusions`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce


def token_losses(logits: Tensor, labels: Tensor, ranks: ProcessGroup) -> Tensor:
    """Cross entropy of every position, in nats.

    Args:
        logits: ``[s, b, vocabulary / ranks]``, this rank's part of the vocabulary.
        labels: int64 ``[s, b]``, of the whole vocabulary.
        ranks: that share the vocabulary, in its order.

    Returns:
        float32 ``[s, b]``, the same on every rank. Its gradient has the dtype of ``logits``.
    """
    losses: Tensor = _TokenLosses.apply(logits, labels, ranks)
    return losses


class _TokenLosses(torch.autograd.Function):
    """Keeps the logits and one number a position, from which the gradient is computed anew."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ranks: ProcessGroup) -> Tensor:
        own = labels - ranks.rank() * logits.shape[-1]
        # Detached, so that one compiled form serves training and validation.
        total, chosen = _sums(logits.detach(), own)
        if ranks.size() > 1:
            largest = total.clone()
            all_reduce(largest, ReduceOp.MAX, group=ranks)
            sums = torch.stack(((total - largest).exp(), chosen))
            all_reduce(sums, group=ranks)
            total, chosen = largest + sums[0].log(), sums[1]
        ctx.save_for_backward(logits, own, total)
        return total - chosen

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, own, total = ctx.saved_tensors
        return _gradient(logits, own, total, gradient), None, None


@torch.compile(dynamic=False)
def _sums(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the sum of exponentials, and the label's logit, or 0 of another rank's label."""
    total = torch.logsumexp(logits.float(), -1)
    here = (own >= 0) & (own < logits.shape[-1])
    chosen = logits.gather(-1, own.where(here, 0)[..., None])[..., 0]
    return total, chosen.float().where(here, 0.0)


@torch.compile(dynamic=False)
def _gradient(logits: Tensor, own: Tensor, total: Tensor, gradient: Tensor) -> Tensor:
    """Softmax less 1 at the label, times the gradient of the loss."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    share = (logits.float() - total[..., None]).exp()
    off = share - (ids == own[..., None]).float()
    return (off * gradient[..., None]).to(logits.dtype)
