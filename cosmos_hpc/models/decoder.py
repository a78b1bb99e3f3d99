"""The Cosmos decoder on Megatron-Core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from megatron.core import tensor_parallel
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.context_parallel import own_part
from cosmos_hpc.models.layers import block_spec
from cosmos_hpc.models.positions import rotary_angles


class VideoRotaryEmbedding(RotaryEmbedding):
    """Megatron's rotary embedding with the table of a video instead of a line of positions."""

    def __init__(self, model: ModelConfig, **kwargs: Any) -> None:
        super().__init__(kv_channels=model.kv_channels, **kwargs)
        # Not a buffer: those become bf16 with the model, which rounds angles by up to a tenth.
        self.angles = rotary_angles(model)[:, None, None, :]

    def forward(
        self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, **_: Any
    ) -> Tensor:
        """Angles of this rank's part of a sequence, ``[part, 1, 1, kv_channels]``, float32."""
        # Where Megatron's own frequencies are, which do the same.
        self.angles = self.angles.to(self.inv_freq.device)
        return own_part(self.angles[offset : offset + max_seq_len], self.cp_group, 0)


class CosmosDecoder(GPTModel):
    """Megatron's GPT with the positions of a video and, with text, cross-attention to it.

    Args:
        config: Megatron's configuration (parallel sizes, dtypes, ``transformer_impl``).
        model: the architecture; must agree with ``config``. Kept as ``architecture``.
        kwargs: as for :class:`megatron.core.models.gpt.gpt_model.GPTModel`.

    Attributes:
        likeliest: whether the label of each position was the likeliest id, bool
            ``[batch, sequence]``, in the last call with labels; None before.
    """

    likeliest: Tensor | None = None
    #: In place of Megatron's loss, where :mod:`cosmos_hpc.models.fusions` puts one here.
    fused_losses: ClassVar[Callable[..., Tensor] | None] = None

    def __init__(self, config: TransformerConfig, model: ModelConfig, **kwargs: Any) -> None:
        super().__init__(
            config=config,
            transformer_layer_spec=block_spec(model, config.transformer_impl),
            vocab_size=model.vocab_size,
            max_sequence_length=model.sequence_length,
            position_embedding_type="rope",
            rotary_base=model.rotary_base,
            share_embeddings_and_output_weights=False,
            **kwargs,
        )
        self.architecture = model
        self.rotary_pos_emb = VideoRotaryEmbedding(
            model,
            rotary_percent=1.0,
            use_cpu_initialization=config.use_cpu_initialization,
            cp_group=self.pg_collection.cp,
        )
        if self.post_process and model.output_vocab_size != model.vocab_size:
            # Special ids are read but never predicted.
            self.output_layer = tensor_parallel.ColumnParallelLinear(
                model.hidden_size,
                model.output_vocab_size,
                config=config,
                init_method=config.init_method,
                bias=False,
                skip_bias_add=False,
                gather_output=not self.parallel_output,
                tp_group=self.pg_collection.tp,
            )
        if model.action_width is not None and model.context_width is not None:
            self.action_mlp = _action_mlp(model.action_width, model.context_width)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: None = None,
        context: Tensor | None = None,
        action: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Logits, or with ``labels`` the loss of every position.

        Args:
            input_ids: int64 ``[batch, sequence]``; under context parallelism, here and below, the
                sequence is this rank's part of it.
            position_ids: not used: positions come from the shape of the clip.
            attention_mask: none: the layers know what they may see.
            context: text embedding ``[batch, text positions, context_width]``.
            action: of a robot, ``[batch, action_width]``; becomes the context.
            kwargs: as for Megatron's GPT, ``labels`` int64 ``[batch, sequence]`` among them.

        Returns:
            Logits ``[batch, sequence, output vocabulary / tensor parallel]``, or losses float32
            ``[batch, sequence]``.
        """
        # That of the weights now, which a training in mixed precision has changed.
        dtype = next(self.parameters()).dtype
        if action is not None:
            # As many positions as numbers, all the same: what the published head does.
            row = self.action_mlp(action.to(dtype))
            context = row[:, None].expand(-1, action.shape[1], -1)
        if context is not None:
            # Megatron's layers take the sequence first.
            context = context.to(dtype).transpose(0, 1).contiguous()
            kwargs["extra_block_kwargs"] = {"context": context}
        return super().forward(input_ids, position_ids, attention_mask, **kwargs)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Losses ``[batch, sequence]`` of logits ``[sequence, batch, output vocabulary / ranks]``.

        ``likeliest`` is set first: computing the loss may overwrite the logits.
        """
        with torch.no_grad():
            self.likeliest = likeliest_ids(logits, self.pg_collection.tp) == labels
        logits = _with_plain_gradient(logits)
        if self.fused_losses is not None:
            losses = self.fused_losses(logits, labels.t().contiguous(), self.pg_collection.tp)
            return losses.t().contiguous()
        loss: Tensor = super().compute_language_model_loss(labels, logits)
        return loss


def _with_plain_gradient(logits: Tensor) -> Tensor:
    """The same logits ``[s, b, v]``, whose gradient reaches the output layer in memory order.

    Compiled losses give that of a single sample a stride of their own in the second dimension.
    Where the output layer is frozen, PyTorch then multiplies position by position, which took
    1.3 of 1.9 seconds of a step of the 4B with adapters on an H200.
    """
    return logits.flatten(0, 1).unflatten(0, logits.shape[:2])


def likeliest_ids(logits: Tensor, ranks: ProcessGroup) -> Tensor:
    """The id of the largest logit of each position, the first of several: int64 ``[b, s]``.

    Args:
        logits: ``[s, b, vocabulary / ranks]``, this rank's part of the vocabulary.
        ranks: that share the vocabulary, in its order.
    """
    largest, ids = logits.max(-1)
    if ranks.size() > 1:
        ids = ids + ranks.rank() * logits.shape[-1]
        # Exact, and a type that every backend can compare.
        largest = largest.float()
        own = largest.clone()
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=ranks)
        ids = ids.where(own == largest, torch.iinfo(ids.dtype).max)
        torch.distributed.all_reduce(ids, torch.distributed.ReduceOp.MIN, group=ranks)
    return ids.transpose(0, 1)


def _action_mlp(action_width: int, context_width: int) -> torch.nn.Sequential:
    """Linear, ReLU, Linear from an action to a row of context; the same on every rank."""
    inner = context_width // 4
    return torch.nn.Sequential(
        torch.nn.Linear(action_width, inner),
        torch.nn.ReLU(),
        torch.nn.Linear(inner, context_width),
    )
