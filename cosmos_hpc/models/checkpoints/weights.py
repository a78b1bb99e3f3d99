"""Every weight of a decoder by its published name and by its name in Megatron.

Megatron packs queries, keys and values by query group (the group's query heads, its key head, its
value head) and stacks the gate of the feed-forward layer on its up projection. A NeMo checkpoint
stacks a weight of all layers along a first axis, and names the norm before a linear layer after
that layer, as if Transformer Engine had fused them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import Architecture
from cosmos_hpc.models.shapes import ACTION_MLP, Shape

#: Norms in Megatron's local layers, and how checkpoints name them.
FUSED_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
_LAYERS = "decoder.layers."


@dataclass(frozen=True)
class Weight:
    """A weight of Megatron's decoder, and the published ones that it is made of.

    Attributes:
        name: in a decoder of Megatron's local layers; without the number of the layer.
        parts: published names.
        groups: query groups by which the parts are interleaved; 1 stacks them one after another.
        layer: number of the layer; None outside of layers.
    """

    name: str
    parts: tuple[str, ...]
    groups: int = 1
    layer: int | None = None

    @property
    def module_name(self) -> str:
        """Name of the parameter in a decoder of Megatron's local layers."""
        return self.name if self.layer is None else f"{_LAYERS}{self.layer}.{self.name}"

    @property
    def key(self) -> str:
        """Name in a NeMo checkpoint, the same for all layers."""
        return self.name if self.layer is None else _LAYERS + FUSED_NORMS.get(self.name, self.name)

    def pack(self, parts: list[Tensor]) -> Tensor:
        """The weight from its parts, each ``[rows, ...]``."""
        if len(parts) == 1:
            return parts[0]
        grouped = [part.unflatten(0, (self.groups, -1)) for part in parts]
        return torch.cat(grouped, 1).flatten(0, 1)

    def unpack(self, packed: Tensor, rows: list[int]) -> list[Tensor]:
        """The parts, with these numbers of rows, as views or copies of the packed weight."""
        if len(rows) == 1:
            return [packed]
        grouped = packed.unflatten(0, (self.groups, -1))
        return [part.flatten(0, 1) for part in grouped.split([r // self.groups for r in rows], 1)]


def weights_of(model: Architecture) -> Iterator[Weight]:
    """All weights of an architecture, in the order of the published checkpoints."""
    yield Weight("embedding.word_embeddings.weight", ("model.tok_embeddings.weight",))
    for layer in range(model.num_layers):
        for name, parts, groups in _layer(model):
            published = tuple(f"model.layers.{layer}.{part}.weight" for part in parts)
            yield Weight(f"{name}.weight", published, groups, layer)
    yield Weight("decoder.final_layernorm.weight", ("model.norm.weight",))
    yield Weight("output_layer.weight", ("model.output.weight",))
    if model.action_width is not None:
        for name in ACTION_MLP:
            yield Weight(name, (name,))


def is_new(name: str) -> bool:
    """Whether a weight may be missing from a checkpoint to start from, and is then random.

    Base checkpoints have no head for actions.
    """
    return name in ACTION_MLP


def _layer(model: Architecture) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Megatron's name, published names and interleaving of the weights of one layer."""
    groups = model.num_query_groups
    yield "input_layernorm", ("attention_norm",), 1
    yield "self_attention.linear_qkv", tuple(f"attention.w{x}" for x in "qkv"), groups
    yield from _heads("self_attention", "attention")
    if model.context_width is not None:
        yield "pre_cross_attn_layernorm", ("cross_attention_norm",), 1
        yield "cross_attention.linear_q", ("cross_attention.wq",), 1
        yield "cross_attention.linear_kv", tuple(f"cross_attention.w{x}" for x in "kv"), groups
        yield from _heads("cross_attention", "cross_attention")
    yield "pre_mlp_layernorm", ("ffn_norm",), 1
    yield "mlp.linear_fc1", ("feed_forward.w1", "feed_forward.w3"), 1
    yield "mlp.linear_fc2", ("feed_forward.w2",), 1


def _heads(name: str, published: str) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """What is the same in self- and cross-attention."""
    yield f"{name}.linear_proj", (f"{published}.wo",), 1
    yield f"{name}.q_layernorm", (f"{published}.q_norm",), 1
    yield f"{name}.k_layernorm", (f"{published}.k_norm",), 1


def packed_shape(weight: Weight, shapes: Mapping[str, Shape]) -> Shape:
    """Shape of a weight in Megatron, without tensor parallelism and the axis of layers."""
    first, *others = (shapes[part] for part in weight.parts)
    return (first[0] + sum(shape[0] for shape in others), *first[1:])


def compare_shapes(found: Mapping[str, Shape], wanted: Mapping[str, Shape], where: str) -> None:
    """Compare names and shapes of tensors with those of an architecture.

    Raises:
        RequestError: names the missing, unexpected and misshapen tensors.
    """
    misshapen = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != shape
    ]
    differences = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "misshapen": misshapen,
    }
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in differences.items()
        if names
    ]
    if problems:
        raise RequestError(f"{where} holds the weights of another model: {'; '.join(problems)}")
