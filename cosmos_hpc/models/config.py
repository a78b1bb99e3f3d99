"""Sizes of a Cosmos autoregressive model, in Megatron's names. Needs no torch."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cosmos_hpc.config import Section
from cosmos_hpc.tokens import NUM_IDS

#: ``(T, H, W)`` in latent frames, rows and columns; a list (YAML) will do.
LatentShape = Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Field(strict=False)]


class Architecture(Section):
    """A Llama-style decoder over video ids, without the size of its clips.

    Attributes:
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        ffn_hidden_size: width of the SwiGLU feed-forward layer.
        num_attention_heads: query heads.
        num_query_groups: key and value heads; divides ``num_attention_heads``.
        kv_channels: channels of a head (of queries, keys and values alike).
        vocab_size: rows of the input embedding.
        output_vocab_size: rows of the output layer.
        rotary_base: base of the rotary frequencies.
        yarn_scale: how far YaRN stretches positions; None for plain rotary.
        yarn_beta_fast, yarn_beta_slow: YaRN's cut-offs, in rotations.
        yarn_original_latent_shape: ``(T, H, W)`` that the model was first trained on.
        context_width: width of the text embedding that cross-attention reads; None without text.
        pad_to_multiple_of: of what the sequence is a multiple, begin-of-video included.

    Raises:
        pydantic.ValidationError: (a ValueError) the sizes do not fit together.
    """

    num_layers: PositiveInt
    hidden_size: PositiveInt
    ffn_hidden_size: PositiveInt
    num_attention_heads: PositiveInt
    num_query_groups: PositiveInt
    kv_channels: PositiveInt
    vocab_size: PositiveInt = NUM_IDS
    output_vocab_size: PositiveInt = NUM_IDS
    rotary_base: PositiveInt = 500_000
    yarn_scale: PositiveFloat | None = None
    yarn_beta_fast: PositiveFloat | None = None
    yarn_beta_slow: PositiveFloat | None = None
    yarn_original_latent_shape: LatentShape | None = None
    context_width: PositiveInt | None = None
    pad_to_multiple_of: PositiveInt | None = None

    @model_validator(mode="after")
    def _fits(self) -> Architecture:
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_query_groups={self.num_query_groups} does not divide "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.kv_channels % 2 or self.kv_channels < 6:
            raise ValueError(f"kv_channels={self.kv_channels} is not an even number of at least 6")
        yarn = [getattr(self, n) for n in type(self).model_fields if n.startswith("yarn_")]
        if any(v is None for v in yarn) != all(v is None for v in yarn):
            raise ValueError("YaRN needs all of its yarn_ settings, or none")
        return self

    @property
    def num_parameters(self) -> int:
        """Trained parameters, counted from the shapes of the architecture."""
        query = self.num_attention_heads * self.kv_channels
        key_value = 2 * self.num_query_groups * self.kv_channels
        attention = self.hidden_size * (2 * query + key_value) + 2 * self.kv_channels
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        if self.context_width:
            cross = 2 * self.hidden_size * query + self.context_width * key_value
            layer += cross + 2 * self.kv_channels + self.hidden_size
        tables = (self.vocab_size + self.output_vocab_size) * self.hidden_size
        return self.num_layers * layer + tables + self.hidden_size


class ModelConfig(Architecture):
    """An architecture and the clips it is for.

    Attributes:
        latent_shape: ``(T, H, W)`` in latent frames, rows and columns.
    """

    latent_shape: LatentShape

    @property
    def sequence_length(self) -> int:
        """Inputs of one sample: the ids of a clip, and with text begin-of-video and padding too."""
        ids = math.prod(self.latent_shape)
        if self.pad_to_multiple_of is None:
            return ids
        return -(-(ids + 1) // self.pad_to_multiple_of) * self.pad_to_multiple_of
