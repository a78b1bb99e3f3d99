"""The decoder on Megatron-Core: local layers with PyTorch's attention, 3D rotary positions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.positions import rotary_angles


class TorchCoreAttention(MegatronModule):
    """Core attention over ``scaled_dot_product_attention``.

    Causal by flag instead of a dense mask (at 12 800 ids a mask alone is 164 MB a sample), grouped
    queries without repeating keys, and the same code on a CPU and a GPU.
    """

    def __init__(
        self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, **_: Any
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale: float | None = config.softmax_scale
        self.is_causal = attn_mask_type == AttnMaskType.causal

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> Tensor:
        """Attend; ``query`` is ``[s, b, heads, d]``, ``key`` and ``value`` ``[s, b, groups, d]``.

        Returns:
            ``[s, b, heads * d]`` in the dtype of the query.
        """
        if attention_mask is not None:
            raise ValueError("TorchCoreAttention takes no dense mask")
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=self.is_causal, scale=self.softmax_scale, enable_gqa=True
        )
        return out.permute(2, 0, 1, 3).flatten(2)


class VideoRotaryEmbedding(RotaryEmbedding):
    """Megatron's rotary embedding with the table of a video instead of a line of positions."""

    def __init__(self, model: ModelConfig, **kwargs: Any) -> None:
        super().__init__(kv_channels=model.kv_channels, **kwargs)
        # Not persistent: the table follows from the configuration, not from a checkpoint.
        self.register_buffer("angles", rotary_angles(model)[:, None, None, :], persistent=False)

    def forward(
        self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, **_: Any
    ) -> Tensor:
        """Angles ``[max_seq_len, 1, 1, kv_channels]``, float32."""
        return self.angles[offset : offset + max_seq_len]


def local_layer_spec(config: TransformerConfig) -> ModuleSpec:
    """Megatron's own layers with :class:`TorchCoreAttention`; Transformer Engine not needed."""
    spec = get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = TorchCoreAttention
    return spec


class CosmosDecoder(GPTModel):
    """Megatron's GPT with the positions of a video.

    Args:
        config: Megatron's configuration (parallel sizes, dtypes).
        model: the architecture; must agree with ``config``.
        kwargs: as for :class:`megatron.core.models.gpt.gpt_model.GPTModel`.
    """

    def __init__(self, config: TransformerConfig, model: ModelConfig, **kwargs: Any) -> None:
        super().__init__(
            config=config,
            vocab_size=model.vocab_size,
            max_sequence_length=model.sequence_length,
            position_embedding_type="rope",
            rotary_base=model.rotary_base,
            share_embeddings_and_output_weights=False,
            **kwargs,
        )
        self.rotary_pos_emb = VideoRotaryEmbedding(
            model,
            rotary_percent=1.0,
            use_cpu_initialization=config.use_cpu_initialization,
            cp_group=self.pg_collection.cp,
        )
