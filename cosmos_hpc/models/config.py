"""Sizes of a Cosmos autoregressive model, in Megatron's names. Needs no torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from cosmos_hpc.data.tokens import NUM_IDS, TEXT_POSITIONS
from cosmos_hpc.models.shapes import action_shapes, published_shapes
from cosmos_hpc.utils.annotations import InWords, PositiveFloat, PositiveInt
from cosmos_hpc.utils.settings import Section

#: ``(T, H, W)`` in latent frames, rows and columns; a list (YAML) will do.
LatentShape = Annotated[
    tuple[PositiveInt, PositiveInt, PositiveInt],
    InWords("list of 3 whole numbers above 0"),
]
#: Fused kernels of training, see :mod:`cosmos_hpc.models.fusions`.
Fusion = Literal[
    "attention_inputs",
    "rotary",
    "norms",
    "swiglu",
    "gradient_accumulation",
    "gradient_norm",
    "adam",
    "loss",
]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)


class Architecture(Section, frozen=True, kw_only=True):
    """A Llama-style decoder over video tokens, without the size of its clips.

    Attributes:
        num_layers: number of decoder layers.
        hidden_size: width of the residual stream.
        ffn_hidden_size: width of the SwiGLU feed-forward layer.
        num_attention_heads: number of query heads.
        num_query_groups: number of key heads, and of value heads; divides ``num_attention_heads``.
        kv_channels: channels of each head, of queries, keys and values alike.
        vocab_size: rows of the input embedding: how many ids the model can read.
        output_vocab_size: rows of the output layer: how many ids the model can predict.
        rotary_base: base of the frequencies of the rotary position embeddings.
        yarn_scale: how far YaRN stretches positions; None: plain rotary embeddings.
        yarn_beta_fast, yarn_beta_slow: YaRN's two cut-offs, in rotations.
        yarn_original_latent_shape: ``(T, H, W)``, latent frames, rows and columns, of the clips
            that the model was trained on before YaRN.
        context_width: width of what cross-attention reads, the embedding of a text or of an action;
            None: a model of videos alone.
        action_width: how many numbers a robot's action has, of which a small network makes what
            cross-attention reads; None: a model without actions.
        pad_to_multiple_of: number that the length of a sequence is padded to a multiple of, the
            begin-of-video token included; None: no padding.

    Raises:
        ValueError: the sizes do not fit together.
    """

    num_layers: PositiveInt
    hidden_size: PositiveInt
    ffn_hidden_size: PositiveInt
    num_attention_heads: PositiveInt
    num_query_groups: PositiveInt
    kv_channels: PositiveInt
    vocab_size: PositiveInt = NUM_IDS
    output_vocab_size: PositiveInt = NUM_IDS
    rotary_base: PositiveFloat = 500_000.0
    yarn_scale: PositiveFloat | None = None
    yarn_beta_fast: PositiveFloat | None = None
    yarn_beta_slow: PositiveFloat | None = None
    yarn_original_latent_shape: LatentShape | None = None
    context_width: PositiveInt | None = None
    action_width: PositiveInt | None = None
    pad_to_multiple_of: PositiveInt | None = None

    def _fits_together(self) -> None:
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_query_groups={self.num_query_groups} does not divide "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.kv_channels % 2 or self.kv_channels < 6:
            raise ValueError(f"kv_channels={self.kv_channels} is not an even number of at least 6")
        yarn = [getattr(self, n) for n in self.__struct_fields__ if n.startswith("yarn_")]
        if any(v is None for v in yarn) != all(v is None for v in yarn):
            raise ValueError("YaRN needs all of its yarn_ settings, or none")
        if self.context_width and self.hidden_size % 2:
            raise ValueError(f"hidden_size={self.hidden_size} must be even for absolute positions")
        if self.action_width and (self.context_width or 0) < 4:
            raise ValueError("action_width needs a context_width, of at least 4, to write into")

    def splits(self, tensor_parallel: int, context_parallel: int = 1) -> str | None:
        """The first size that ranks cannot share; None if they can.

        Those of context parallelism share no weights, but in attention the heads.
        """
        if self.num_query_groups % (tensor_parallel * context_parallel):
            return "num_query_groups"
        for name in ("ffn_hidden_size", "vocab_size", "output_vocab_size"):
            if getattr(self, name) % tensor_parallel:
                return name
        return None

    @property
    def num_parameters(self) -> int:
        """Trained parameters."""
        return sum(math.prod(shape) for shape in published_shapes(self).values())


class ModelConfig(Architecture, frozen=True, kw_only=True):
    """An architecture and the clips it is for.

    Attributes:
        latent_shape: ``(T, H, W)`` in latent frames, rows and columns.
    """

    latent_shape: LatentShape

    @property
    def special_ids_first(self) -> int:
        """Inputs before those of the clip: begin-of-video, for models with text or actions."""
        return 0 if self.context_width is None else 1

    @property
    def sequence_length(self) -> int:
        """Inputs of one sample: the tokens of a clip, those before it and padding."""
        length = self.special_ids_first + math.prod(self.latent_shape)
        multiple = self.pad_to_multiple_of or 1
        return -(-length // multiple) * multiple

    def training_flops(self, text_positions: int = TEXT_POSITIONS) -> int:
        """Floating-point operations of one sample's forward and backward pass.

        Two for each multiplication with a weight and three passes over it (forward, and backward to
        inputs and to weights), as usual; attention to earlier positions counts half of the square;
        what recomputation repeats does not count. The input embedding is a lookup.

        Args:
            text_positions: rows of the context, for models with one.
        """
        query = self.num_attention_heads * self.kv_channels
        layers = self.num_layers * self.sequence_length
        tables = (self.vocab_size + self.output_vocab_size) * self.hidden_size
        head = sum(math.prod(shape) for shape in action_shapes(self).values())
        per_position = (self.num_parameters - head - tables) * 2
        flops = self.sequence_length * (
            per_position + 2 * self.output_vocab_size * self.hidden_size
        )
        flops += layers * 2 * self.sequence_length * query
        if self.context_width:
            flops += layers * 4 * text_positions * query
            # Keys and values of the text are of its positions, not of the video's.
            key_value = 2 * self.num_query_groups * self.kv_channels * self.context_width
            flops += self.num_layers * 2 * key_value * (text_positions - self.sequence_length)
        return 3 * flops
