"""A decoder with a cache of keys and values: a prompt in one pass, then an id at a time.

The arithmetic is that of Megatron's layers as :mod:`cosmos_hpc.models.layers` puts them together,
on the same weights, which are referred to and not copied. It is stated once more because Megatron's
own modules cannot run inside of a captured step: they take the position as a number of Python's,
recompute a text's keys and values for every token, and reach attention through code that waits for
the GPU (docs/generation.md).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.positions import absolute_positions

#: Positions of prompts that go through the layers at once: enough to fill a GPU, and half a
#: gigabyte of activations for the 4B. A longer prompt goes alone.
PREFILL_POSITIONS = 8192
#: Inductor's settings for the parts of a step. With this one it writes products of a matrix with
#: one vector itself, as reductions that run at the speed of memory, instead of calling cuBLAS.
INDUCTOR_OPTIONS: dict[str, Any] = {"coordinate_descent_tuning": True}

#: Whether to compile on GPUs at all.
COMPILE = True

#: ``(query, keys, values, positions) -> output``, as :func:`attend_prefix`.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
#: Gives the form of a function that is to be called: itself, or compiled.
Form = Callable[[Callable[..., Any]], Callable[..., Any]]


class Sizes(NamedTuple):
    """Sizes of attention: query heads, key and value heads, channels of each; epsilon of norms."""

    heads: int
    groups: int
    width: int
    epsilon: float


class LayerWeights(NamedTuple):
    """Weights of self-attention and feed-forward of one layer, packed as Megatron packs them."""

    norm: Tensor
    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    projection: Tensor
    mlp_norm: Tensor
    fc1: Tensor
    fc2: Tensor


class TextWeights(NamedTuple):
    """Weights of one layer's cross-attention."""

    norm: Tensor
    q: Tensor
    kv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    projection: Tensor


class CachedDecoder:
    """Sequences on their way through a decoder, with the keys and values of what they have read.

    The cache holds, for each layer, keys and values ``[batch, groups, length, channels]`` in the
    dtype of the weights, 64 KiB a position and sequence for the 4B in bf16, and those of the text,
    which are computed here once.

    Args:
        decoder: complete on one rank; its weights are used as they are.
        batch: sequences.
        length: positions that are to be read at most, begin-of-video included.
        context: ``[batch, text positions, context_width]`` on the decoder's device, any float
            dtype, for models with cross-attention.
    """

    def __init__(
        self,
        decoder: CosmosDecoder,
        batch: int,
        length: int,
        context: Tensor | None = None,
    ) -> None:
        config, model = decoder.config, decoder.architecture
        self._sizes = Sizes(
            model.num_attention_heads,
            model.num_query_groups,
            model.kv_channels,
            config.layernorm_epsilon,
        )
        self._embedding = decoder.embedding.word_embeddings.weight.detach()
        self._norm = decoder.decoder.final_layernorm.weight.detach()
        self._output = decoder.output_layer.weight.detach()
        self._layers = [_layer_weights(layer) for layer in decoder.decoder.layers]
        device, dtype = self._embedding.device, self._embedding.dtype
        self._step_form = step_form(device)

        # As in Megatron's rotary embedding: angles in float32, then the dtype of the layers.
        angles = decoder.rotary_pos_emb(length)[:, 0, 0].to(device)
        self._cos, self._sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self._absolute: Tensor | None = None
        # Of zeros, not of what was in memory: a mask does not hide what is not a number.
        shape = (batch, self._sizes.groups, length, self._sizes.width)
        self._keys, self._values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in self._layers] for _ in range(2)
        )
        self._text: list[tuple[TextWeights, Tensor, Tensor]] = []
        if context is not None:
            self._absolute = absolute_positions(model)[:length].to(device, dtype)
            weights = [_text_weights(layer) for layer in decoder.decoder.layers]
            text = context.to(dtype)
            self._text = [(w, *_text_keys_values(text, w, self._sizes)) for w in weights]

    def prefill(self, inputs: Tensor) -> Tensor:
        """Read what the sequences begin with, int64 ``[batch, positions]``.

        Returns:
            Logits of the id that follows, float32 ``[batch, output vocabulary]``.
        """
        batch, length = inputs.shape
        positions = torch.arange(length, device=inputs.device)
        at_once = max(1, PREFILL_POSITIONS // length)
        parts = []
        for first in range(0, batch, at_once):
            items = slice(first, first + at_once)
            parts.append(self._read(inputs[items], positions, items, _attend_causal, _plain))
        return torch.cat(parts)

    def step(self, inputs: Tensor, position: Tensor) -> Tensor:
        """Read one more input of every sequence.

        Args:
            inputs: int64 ``[batch]``.
            position: of the inputs, the same for all, int64 ``[1]`` on the device: a step that was
                captured reads it again each time.

        Returns:
            As :meth:`prefill`.
        """
        return self._read(inputs[:, None], position, slice(None), attend_prefix, self._step_form)

    def _read(
        self, inputs: Tensor, positions: Tensor, items: slice, attend: Attend, form: Form
    ) -> Tensor:
        """Inputs ``[items, positions]`` through all layers; logits after the last position."""
        sizes = self._sizes
        x = F.embedding(inputs, self._embedding)
        turn = (self._cos.index_select(0, positions), self._sin.index_select(0, positions))
        absolute = None if self._absolute is None else self._absolute.index_select(0, positions)
        for number, weights in enumerate(self._layers):
            keys, values = self._keys[number][items], self._values[number][items]
            x, q = form(_enter)(x, absolute, weights, turn, keys, values, positions, sizes)
            seen, projection = attend(q, keys, values, positions), weights.projection
            if self._text:
                text, text_keys, text_values = self._text[number]
                x, q = form(_turn_to_text)(x, seen, projection, text, sizes)
                seen = _attend_all(q, text_keys[items], text_values[items])
                projection = text.projection
            x = form(_leave)(x, seen, projection, weights, sizes)
        logits: Tensor = form(_predict)(x[:, -1], self._norm, self._output, sizes)
        return logits


def _enter(
    x: Tensor,
    absolute: Tensor | None,
    weights: LayerWeights,
    turn: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    sizes: Sizes,
) -> tuple[Tensor, Tensor]:
    """What stands before self-attention; puts keys and values into the cache.

    Args:
        x: ``[b, s, hidden]``.
        absolute: rows to add, ``[s, hidden]``.
        weights: of the layer.
        turn: cosines and sines of the rotary angles, each ``[s, channels]``.
        keys, values: the cache, ``[b, groups, length, channels]``.
        positions: where in it, int64 ``[s]``.
        sizes: of attention.

    Returns:
        ``x`` with the absolute positions, and queries ``[b, heads, s, channels]``.
    """
    heads, groups, width, _ = sizes
    if absolute is not None:
        x = x + absolute
    mixed = F.linear(_norm(x, weights.norm, sizes), weights.qkv)
    # A group after the other: its query heads, its key head, its value head.
    each = heads // groups
    q, k, v = mixed.unflatten(-1, (groups, each + 2, width)).split([each, 1, 1], -2)
    q = _rotate(_norm(q.flatten(2, 3), weights.q_norm, sizes), turn)
    k = _rotate(_norm(k.squeeze(-2), weights.k_norm, sizes), turn)
    keys.index_copy_(2, positions, k.transpose(1, 2))
    values.index_copy_(2, positions, v.squeeze(-2).transpose(1, 2))
    return x, q.transpose(1, 2)


def _turn_to_text(
    x: Tensor, seen: Tensor, projection: Tensor, text: TextWeights, sizes: Sizes
) -> tuple[Tensor, Tensor]:
    """From self- to cross-attention: the residual stream, and queries for the text."""
    x = x + F.linear(_joined(seen), projection)
    q = F.linear(_norm(x, text.norm, sizes), text.q).unflatten(-1, (-1, sizes.width))
    return x, _norm(q, text.q_norm, sizes).transpose(1, 2)


def _leave(
    x: Tensor, seen: Tensor, projection: Tensor, weights: LayerWeights, sizes: Sizes
) -> Tensor:
    """What follows the layer's last attention: its projection and the feed-forward layer."""
    x = x + F.linear(_joined(seen), projection)
    gate, up = F.linear(_norm(x, weights.mlp_norm, sizes), weights.fc1).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, weights.fc2)


def _predict(x: Tensor, norm: Tensor, output: Tensor, sizes: Sizes) -> Tensor:
    """Logits in float32 of the last layer's output, ``[b, hidden]``."""
    return F.linear(_norm(x, norm, sizes), output).float()


def _norm(x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, sizes.epsilon)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions by the "rotate half" convention; ``x`` is ``[b, s, heads, channels]``."""
    cos, sin = turn
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


def _joined(seen: Tensor) -> Tensor:
    """``[b, heads, s, channels]`` as ``[b, s, heads * channels]``."""
    return seen.transpose(1, 2).flatten(2)


def _text_keys_values(text: Tensor, weights: TextWeights, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Keys and values of a text in one layer, each ``[b, groups, text positions, channels]``."""
    pairs = F.linear(text, weights.kv).unflatten(-1, (sizes.groups, 2, sizes.width))
    k, v = pairs.unbind(-2)
    k = _norm(k, weights.k_norm, sizes)
    return k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()


def _attend_all(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)


def _attend_causal(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Attention of a prompt to itself, which is all that the cache holds."""
    keys, values = (x[:, :, : len(positions)] for x in (keys, values))
    return F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=True)


def attend_prefix(q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
    """Attention of one query to the positions up to its own.

    Args:
        q: ``[batch, heads, 1, channels]``.
        keys, values: the cache, ``[batch, groups, length, channels]``.
        position: of the query, int64 ``[1]`` on the same device. On GPUs it stays there.

    Returns:
        ``[batch, heads, 1, channels]``.
    """
    if not q.is_cuda:
        used = int(position) + 1
        return _attend_all(q, keys[:, :, :used], values[:, :, :used])
    if not _have_triton():
        return attend_masked(q, keys, values, position)
    from cosmos_hpc.models.prefix_attention import attend_in_parts

    parts, weights = attend_in_parts(q, keys, values, position)
    merged: Tensor = step_form(q.device)(_merge)(parts, weights, q)
    return merged


def attend_masked(q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
    """The same by a mask over the whole cache, all of which is read at every step."""
    mask = torch.arange(keys.shape[2], device=q.device) <= position
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[None], enable_gqa=True)


def _merge(parts: Tensor, weights: Tensor, like: Tensor) -> Tensor:
    """Attention to parts, each by itself, as attention to all; in shape and dtype ``like``."""
    return (weights.softmax(-1)[..., None] * parts).sum(-2).to(like.dtype).view(like.shape)


def step_form(device: torch.device) -> Form:
    """In which form a step calls its parts: compiled on a GPU where Triton is installed."""
    return _compiled if COMPILE and device.type == "cuda" and _have_triton() else _plain


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled, once in a process: layers differ only in their weights."""
    return torch.compile(function, dynamic=False, options=dict(INDUCTOR_OPTIONS))


@functools.cache
def _have_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _layer_weights(layer: Any) -> LayerWeights:
    """Weights of a layer of Megatron's, of either form of :func:`.layers.block_spec`."""
    attention, mlp = layer.self_attention, layer.mlp
    found = LayerWeights(
        _norm_before(attention.linear_qkv, layer.input_layernorm),
        attention.linear_qkv.weight,
        attention.q_layernorm.weight,
        attention.k_layernorm.weight,
        attention.linear_proj.weight,
        _norm_before(mlp.linear_fc1, layer.pre_mlp_layernorm),
        mlp.linear_fc1.weight,
        mlp.linear_fc2.weight,
    )
    return LayerWeights(*(weight.detach() for weight in found))


def _text_weights(layer: Any) -> TextWeights:
    """The same of a layer's cross-attention."""
    attention = layer.cross_attention
    found = TextWeights(
        layer.pre_cross_attn_layernorm.weight,
        attention.linear_q.weight,
        attention.linear_kv.weight,
        attention.q_layernorm.weight,
        attention.k_layernorm.weight,
        attention.linear_proj.weight,
    )
    return TextWeights(*(weight.detach() for weight in found))


def _norm_before(linear: Any, norm: Any) -> Tensor:
    """Weight of the norm before a linear layer, which Transformer Engine keeps in that layer."""
    weight: Tensor = (
        linear.layer_norm_weight if hasattr(linear, "layer_norm_weight") else norm.weight
    )
    return weight
