"""The loss of a step, and the fraction of tokens that the model ranked most likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MaskedTokenLossReduction
from torch import Tensor


class LossAndAccuracy(MaskedTokenLossReduction):
    """NeMo's mean loss over the tokens of a global batch, and the token accuracy.

    The model gives a pair: losses float32 and whether each label was the likeliest id bool, both
    ``[batch, sequence]``.

    Args:
        log: called with the accuracy of a global batch, a scalar.
    """

    def __init__(self, log: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._log = log

    def forward(
        self, batch: dict[str, Tensor], forward_out: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sums over a micro batch: losses, tokens, and tokens that were ranked most likely."""
        losses, likeliest = forward_out
        loss, count, sums = super().forward(batch, losses)
        right = (likeliest * batch["loss_mask"]).sum().view(1)
        return loss, count, {"sums": torch.cat([sums["loss_sum_and_ub_size"], right])}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, Any]]) -> Tensor:
        """Mean loss of the global batch."""
        batches = torch.vstack([x["sums"] for x in losses_reduced_per_micro_batch])
        # The loss of a micro batch without any id is not a number. NeMo looks for those one by
        # one, and so waits for the GPU, which then waits for all that follows here.
        sums = batches.where(batches[:, 1:2] > 0, 0).sum(dim=0)
        torch.distributed.all_reduce(
            sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True)
        )
        self._log(sums[2] / sums[1])
        return sums[0] / sums[1]
