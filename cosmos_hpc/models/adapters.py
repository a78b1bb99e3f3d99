"""Linear layers of a decoder that may have a low-rank adapter (LoRA). Needs no torch.

An adapter of a linear layer W ``[out, in]`` is a pair A ``[rank, in]``, B ``[out, rank]``; the
layer then computes W x + alpha / rank * B A x (Hu et al., "LoRA: Low-Rank Adaptation of Large
Language Models", 2021).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from cosmos_hpc.models.config import Architecture

#: Megatron's names of linear layers, the last two of cross-attention to a text.
Target = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "linear_q", "linear_kv"]


def linear_layers(
    model: Architecture, targets: Collection[str] | None = None
) -> dict[str, tuple[int, int]]:
    """Name in a layer of Megatron, and ``(out, in)``, of the linear layers of one decoder layer.

    Args:
        model: the architecture.
        targets: the last parts of their names; None for all.
    """
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    query = model.num_attention_heads * model.kv_channels
    pairs = 2 * model.num_query_groups * model.kv_channels
    layers = {
        "self_attention.linear_qkv": (query + pairs, hidden),
        "self_attention.linear_proj": (hidden, query),
        "mlp.linear_fc1": (2 * ffn, hidden),
        "mlp.linear_fc2": (hidden, ffn),
    }
    if model.context_width is not None:
        layers["cross_attention.linear_q"] = (query, hidden)
        layers["cross_attention.linear_kv"] = (pairs, model.context_width)
        layers["cross_attention.linear_proj"] = (hidden, query)
    return {
        name: shape
        for name, shape in layers.items()
        if targets is None or name.rpartition(".")[2] in targets
    }


def targets_of(model: Architecture) -> list[str]:
    """The targets that a model has."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linear_layers(model)))


def num_adapter_parameters(
    model: Architecture, rank: int, targets: Collection[str] | None = None
) -> int:
    """Numbers in the adapters of all layers of a model."""
    shapes = linear_layers(model, targets).values()
    return model.num_layers * sum(rank * sum(shape) for shape in shapes)
