"""Context parallelism: ranks that each hold an equal, contiguous part of a sample's sequence.

Linear layers, norms and the loss need no more than the part. Around causal attention the ranks
exchange parts of the sequence for heads, so that each attends over the complete sequence with its
share of the heads (Jacobs et al., "DeepSpeed Ulysses", 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_to_all_single


def own_part(x: Tensor, ranks: ProcessGroup, dim: int) -> Tensor:
    """This rank's part of a sequence that all ``ranks`` have, contiguous.

    Args:
        x: whose dimension ``dim`` is the sequence, a multiple of the number of ranks.
        ranks: that share the sequence, in its order.
        dim: of the sequence.
    """
    length = x.shape[dim] // ranks.size()
    return x.narrow(dim, ranks.rank() * length, length).contiguous()


def attend_over_heads(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ranks: ProcessGroup,
) -> Tensor:
    """Attention over a sequence of which each rank has a part.

    Args:
        attend: from queries ``[s, b, heads, d]``, keys and values ``[s, b, groups, d]`` to
            ``[s, b, heads, d]``.
        query: ``[s / ranks, b, heads, d]``.
        key, value: ``[s / ranks, b, groups, d]``, of a number of groups that the ranks divide.
        ranks: that share the sequence, in its order.

    Returns:
        ``[s / ranks, b, heads, d]``.
    """
    parts = [x.unflatten(2, (ranks.size(), -1)).movedim(2, 0) for x in (query, key, value)]
    # One exchange for all three: [the rank of these heads, s / ranks, b, heads and groups, d].
    packed = torch.cat(parts, dim=3)
    complete = _exchange(packed, ranks).flatten(0, 1)
    output = attend(*complete.split([part.shape[3] for part in parts], dim=2))
    by_rank = output.unflatten(0, (ranks.size(), -1))
    return _exchange(by_rank, ranks).movedim(0, 2).flatten(2, 3)


def _exchange(x: Tensor, ranks: ProcessGroup) -> Tensor:
    """What each rank has for this one: ``x[r]`` goes to rank r, whose piece comes in its place."""
    received: Tensor = _Exchange.apply(x, ranks)
    return received


class _Exchange(torch.autograd.Function):
    """An all-to-all of equal pieces, which its own gradient takes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: ProcessGroup) -> Tensor:
        ctx.ranks = ranks
        return _all_to_all(x, ranks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradient, ctx.ranks), None


def _all_to_all(x: Tensor, ranks: ProcessGroup) -> Tensor:
    sent = x.contiguous()
    received = torch.empty_like(sent)
    all_to_all_single(received, sent, group=ranks)
    return received
