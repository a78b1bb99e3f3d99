"""The loss of a step, and the fraction of tokens that the model ranked most likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MaskedTokenLossReduction
from torch import Tensor

from cosmos_hpc.models.context_parallel import own_part


class LossAndAccuracy(MaskedTokenLossReduction):
    """NeMo's mean loss over the tokens of a global batch, and the token accuracy.

    The model gives a pair: losses float32 and whether each label was the likeliest id bool, both
    ``[batch, sequence]``; under context parallelism of this rank's part of the sequence.

    Args:
        log: called with the accuracy of a global batch, a scalar.
    """

    def __init__(self, log: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._log = log

    def forward(
        self, batch: dict[str, Tensor], forward_out: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sums over a micro batch: losses, tokens, and tokens that were ranked most likely.

        Those in the dictionary are of this rank's part of the sequence. Megatron divides the loss
        by the tokens and averages gradients over all ranks: with the tokens of the complete
        sequence, and the loss times the ranks that share it, every token counts the same.
        """
        losses, likeliest = forward_out
        ranks = parallel_state.get_context_parallel_group()
        own = {"loss_mask": own_part(batch["loss_mask"], ranks, 1)}
        loss, _, sums = super().forward(own, losses)
        right = (likeliest * own["loss_mask"]).sum().view(1)
        tokens = batch["loss_mask"].sum().int()
        return (
            loss * ranks.size(),
            tokens,
            {"sums": torch.cat([sums["loss_sum_and_ub_size"], right])},
        )

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, Any]]) -> Tensor:
        """Mean loss of the global batch."""
        # NeMo looks for micro batches without any token one by one, and so waits for the GPU, which
        # then waits for all that follows here. Their sums are 0.
        sums = torch.vstack([x["sums"] for x in losses_reduced_per_micro_batch]).sum(dim=0)
        torch.distributed.all_reduce(
            sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True)
        )
        self._log(sums[2] / sums[1])
        return sums[0] / sums[1]
