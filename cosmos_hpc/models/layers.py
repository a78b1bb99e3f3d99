"""Layers that Megatron-Core lacks for these models, and the layer specs that use them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import (
    Attention,
    CrossAttentionSubmodules,
    SelfAttention,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.context_parallel import attend_over_heads
from cosmos_hpc.models.positions import absolute_positions


class RMSNorm(torch.nn.RMSNorm):
    """PyTorch's RMSNorm with Megatron's signature; unlike Megatron's own, sequence parallel too."""

    #: Of all norms of the process; :mod:`cosmos_hpc.models.fusions` puts a compiled one here.
    kernel: ClassVar[Callable[..., Tensor]] = staticmethod(F.rms_norm)

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps)
        # Tells Megatron to sum the gradients of ranks that each see a part of the sequence.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Norm of the last dimension, in the dtype of ``x``."""
        return self.kernel(x, self.normalized_shape, self.weight, self.eps)


class TorchCoreAttention(MegatronModule):
    """Core attention over ``scaled_dot_product_attention``.

    Causal by flag instead of a dense mask (at 12 800 ids a mask alone is 164 MB a sample), grouped
    queries without repeating keys, and the same code on a CPU and a GPU. Where ranks share the
    sequence, causal attention is over all of it; text has no parts.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        pg_collection: ProcessGroupCollection,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale: float | None = config.softmax_scale
        self.is_causal = attn_mask_type == AttnMaskType.causal
        self._ranks = pg_collection.cp

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> Tensor:
        """Attend; ``query`` is ``[s, b, heads, d]``, ``key`` and ``value`` ``[t, b, groups, d]``.

        Returns:
            ``[s, b, heads * d]`` in the dtype of the query.

        Raises:
            ValueError: there is a dense mask.
        """
        if attention_mask is not None:
            raise ValueError("TorchCoreAttention takes no dense mask")
        if self.is_causal and self._ranks.size() > 1:
            return attend_over_heads(self._attend, query, key, value, self._ranks).flatten(2)
        return self._attend(query, key, value).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Output ``[s, b, heads, d]``."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=self.is_causal, scale=self.softmax_scale, enable_gqa=True
        )
        return out.permute(2, 0, 1, 3)


class RotatedSelfAttention(SelfAttention):
    """Megatron's, where a kernel may split the projection, norm each head and rotate it at once."""

    #: :func:`cosmos_hpc.models.attention_inputs.queries_keys_values`, for all self-attention of the
    #: process, where :mod:`cosmos_hpc.models.fusions` puts it here. It takes heads of 2, 4, 8...
    #: channels.
    kernel: ClassVar[Callable[..., tuple[Tensor, Tensor, Tensor]] | None] = None

    def forward(
        self, *args: Any, rotary_pos_emb: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As Megatron's; ``rotary_pos_emb`` are angles ``[s, 1, 1, d]``."""
        width = self.hidden_size_per_attention_head
        self._angles = None
        if self.kernel is not None and width & (width - 1) == 0:
            # Megatron's would rotate what get_query_key_value_tensors returns.
            self._angles, rotary_pos_emb = rotary_pos_emb, None
        output: tuple[Tensor, Tensor] = super().forward(
            *args, rotary_pos_emb=rotary_pos_emb, **kwargs
        )
        return output

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        split_qkv: bool = True,
    ) -> tuple[Tensor, ...]:
        """Queries ``[s, b, heads, d]``, keys and values ``[s, b, groups, d]`` of this rank."""
        if self.kernel is None or self._angles is None:
            parts: tuple[Tensor, ...] = super().get_query_key_value_tensors(
                hidden_states, key_value_states, split_qkv
            )
            return parts
        shape = (self.num_query_groups_per_partition, -1, self.hidden_size_per_attention_head)
        projected = self.linear_qkv(hidden_states)[0].unflatten(-1, shape)
        weights = self.q_layernorm.weight, self.k_layernorm.weight
        return self.kernel(projected, *weights, self._angles, self.config.layernorm_epsilon)


class TextCrossAttention(Attention):
    """Cross-attention from hidden states to a text embedding of another width.

    Queries and keys have an RMSNorm a head and no positions, keys and values come in query groups,
    and every position of the text is seen: Megatron's own has none of these.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: CrossAttentionSubmodules,
        layer_number: int,
        context_width: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            config=config,
            submodules=submodules,
            layer_number=layer_number,
            attn_mask_type=AttnMaskType.no_mask,
            attention_type="cross",
            **kwargs,
        )
        linear = {
            "init_method": config.init_method,
            "gather_output": False,
            "bias": False,
            "skip_bias_add": False,
            "is_expert": False,
        }
        self.linear_q = build_module(
            submodules.linear_q,
            config.hidden_size,
            self.query_projection_size,
            config=config,
            **linear,
        )
        # Every rank holds the whole text, also where the sequence is spread over ranks.
        whole = copy.copy(config)
        whole.sequence_parallel = False
        self.linear_kv = build_module(
            submodules.linear_kv, context_width, 2 * self.kv_projection_size, config=whole, **linear
        )
        width = self.hidden_size_per_attention_head
        self.q_layernorm = RMSNorm(config, width, config.layernorm_epsilon)
        self.k_layernorm = RMSNorm(config, width, config.layernorm_epsilon)

    def get_query_key_value_tensors(
        self, hidden_states: Tensor, key_value_states: Tensor, split_qkv: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[s, b, heads, d]``, keys and values ``[t, b, groups, d]`` of this rank."""
        width = self.hidden_size_per_attention_head
        query = self.linear_q(hidden_states)[0].unflatten(-1, (-1, width))
        pairs = self.linear_kv(key_value_states)[0].unflatten(-1, (-1, 2, width))
        key, value = pairs.unbind(-2)
        return self.q_layernorm(query), self.k_layernorm(key), value


class AbsolutePositions:
    """The sine-cosine table of a model, one copy a device and dtype for all layers.

    Not a buffer: it follows from the configuration, and each layer would get a copy of a
    buffer.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def add_to(self, hidden_states: Tensor, sequence_parallel: bool) -> Tensor:
        """``hidden_states``, ``[s, b, hidden]``, with the rows of its positions added.

        Under context and sequence parallelism ``s`` is this rank's part of the sequence.
        """
        key = (hidden_states.device, hidden_states.dtype)
        if key not in self._tables:
            self._tables[key] = absolute_positions(self._model).to(*key)
        length = hidden_states.shape[0]
        part = parallel_state.get_context_parallel_rank()
        if sequence_parallel:
            # Each part of the sequence is divided again.
            part *= parallel_state.get_tensor_model_parallel_world_size()
            part += parallel_state.get_tensor_model_parallel_rank()
        start = part * length
        return hidden_states + self._tables[key][start : start + length, None]


class PositionedLayer(TransformerLayer):
    """Megatron's layer with absolute positions added to its input."""

    def __init__(self, *args: Any, positions: AbsolutePositions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._positions = positions

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As Megatron's layer."""
        hidden_states = self._positions.add_to(hidden_states, self.config.sequence_parallel)
        output: tuple[Tensor, Tensor] = super().forward(hidden_states, *args, **kwargs)
        return output


def have_transformer_engine() -> bool:
    """Whether Transformer Engine is installed and there is a GPU, without which it cannot run."""
    return gpt_layer_specs.HAVE_TE and torch.cuda.is_available()


def choose_transformer_impl(asked: str) -> str:
    """``local`` or ``transformer_engine``.

    Args:
        asked: one of these, or ``auto`` for ``local``, which is faster with its fused kernels.

    Raises:
        RequestError: Transformer Engine is asked for and cannot run here.
    """
    if asked == "auto":
        return "local"
    if asked == "transformer_engine" and not have_transformer_engine():
        raise RequestError(
            "train.transformer_impl=transformer_engine needs Transformer Engine and a GPU, and "
            "they are not both here; auto and local run without"
        )
    return asked


def block_spec(model: ModelConfig, transformer_impl: str) -> TransformerBlockSubmodules:
    """The layers of an architecture, in one of two forms with the same names in checkpoints.

    Args:
        model: the architecture.
        transformer_impl: ``local`` for Megatron's own linear layers with PyTorch's attention and
            norms; ``transformer_engine`` for Transformer Engine's, which fuse norms into linear
            layers.
    """
    parts = _transformer_engine if transformer_impl == "transformer_engine" else _local
    layer, column, row, core, norm = parts()
    if model.context_width is not None:
        layer.module = PositionedLayer
        layer.params = {"positions": AbsolutePositions(model)}
        layer.submodules.pre_cross_attn_layernorm = norm
        layer.submodules.cross_attn_bda = get_bias_dropout_add
        layer.submodules.cross_attention = ModuleSpec(
            module=TextCrossAttention,
            params={"context_width": model.context_width},
            submodules=CrossAttentionSubmodules(
                linear_q=column, linear_kv=column, core_attention=core, linear_proj=row
            ),
        )
    return TransformerBlockSubmodules(layer_specs=[layer] * model.num_layers, layer_norm=norm)


def _local() -> tuple[ModuleSpec, type, type, type, type]:
    """Layer, column- and row-parallel linear, core attention and norm without further libraries."""
    layer = get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    parts.self_attention.module = RotatedSelfAttention
    attention = parts.self_attention.submodules
    attention.core_attention = TorchCoreAttention
    attention.q_layernorm = attention.k_layernorm = RMSNorm
    return layer, ColumnParallelLinear, RowParallelLinear, TorchCoreAttention, RMSNorm


def _transformer_engine() -> tuple[ModuleSpec, type, type, type, type]:
    """The same of Transformer Engine."""
    from megatron.core.extensions.transformer_engine import (
        TEColumnParallelLinear,
        TEDotProductAttention,
        TENorm,
        TERowParallelLinear,
    )

    layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=True)
    return layer, TEColumnParallelLinear, TERowParallelLinear, TEDotProductAttention, TENorm
