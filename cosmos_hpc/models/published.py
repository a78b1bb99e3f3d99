"""Published PyTorch weights and Megatron's: the names of both, and how one becomes the other.

Megatron packs queries, keys and values by query group (the group's query heads, its key head, its
value head) and stacks the gate of the feed-forward layer on its up projection.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import ModelConfig


def published_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a published checkpoint of this architecture."""
    hidden, width = config.hidden_size, config.kv_channels
    query, key = config.num_attention_heads * width, config.num_query_groups * width
    layer: dict[str, tuple[int, ...]] = {"attention_norm": (hidden,), "ffn_norm": (hidden,)}
    layer |= _attention_shapes("attention", hidden, hidden, query, key, width)
    if config.context_width is not None:
        layer["cross_attention_norm"] = (hidden,)
        layer |= _attention_shapes(
            "cross_attention", hidden, config.context_width, query, key, width
        )
    ffn = config.ffn_hidden_size
    layer |= {f"feed_forward.w{n}": (ffn, hidden) for n in (1, 3)}
    layer["feed_forward.w2"] = (hidden, ffn)
    shapes: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "model.output.weight": (config.output_vocab_size, hidden),
    }
    for number in range(config.num_layers):
        shapes |= {f"model.layers.{number}.{k}.weight": shape for k, shape in layer.items()}
    return shapes


def _attention_shapes(
    name: str, hidden: int, source: int, query: int, key: int, width: int
) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.wq": (query, hidden),
        f"{name}.wk": (key, source),
        f"{name}.wv": (key, source),
        f"{name}.wo": (hidden, query),
        f"{name}.q_norm": (width,),
        f"{name}.k_norm": (width,),
    }


def check_published(weights: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Compare names and shapes with what the architecture needs.

    Raises:
        RequestError: names the missing, unexpected and misshapen tensors.
    """
    shapes = published_shapes(config)
    missing = [name for name in shapes if name not in weights]
    unexpected = [name for name in weights if name not in shapes]
    misshapen = [
        f"{name} is {list(weights[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
        )
        if names
    ]
    if problems:
        raise RequestError(f"the weights are of another model: {'; '.join(problems)}")


def to_megatron(weights: Mapping[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Megatron's name and tensor of every weight, one at a time, for tensor parallel 1."""
    yield "embedding.word_embeddings.weight", weights["model.tok_embeddings.weight"]
    yield "decoder.final_layernorm.weight", weights["model.norm.weight"]
    yield "output_layer.weight", weights["model.output.weight"]
    for number in range(config.num_layers):
        source, target = f"model.layers.{number}", f"decoder.layers.{number}"
        for name, tensor in _layer(weights, source, config):
            yield f"{target}.{name}.weight", tensor


def _layer(
    weights: Mapping[str, Tensor], source: str, config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    def get(name: str) -> Tensor:
        return weights[f"{source}.{name}.weight"]

    def same(target: str, name: str) -> Iterator[tuple[str, Tensor]]:
        """What is the same in self- and cross-attention."""
        yield f"{target}.linear_proj", get(f"{name}.wo")
        yield f"{target}.q_layernorm", get(f"{name}.q_norm")
        yield f"{target}.k_layernorm", get(f"{name}.k_norm")

    groups = config.num_query_groups
    yield "input_layernorm", get("attention_norm")
    packed = pack_groups([get(f"attention.w{x}") for x in "qkv"], groups)
    yield "self_attention.linear_qkv", packed
    yield from same("self_attention", "attention")
    if config.context_width is not None:
        yield "pre_cross_attn_layernorm", get("cross_attention_norm")
        yield "cross_attention.linear_q", get("cross_attention.wq")
        packed = pack_groups([get(f"cross_attention.w{x}") for x in "kv"], groups)
        yield "cross_attention.linear_kv", packed
        yield from same("cross_attention", "cross_attention")
    yield "pre_mlp_layernorm", get("ffn_norm")
    yield "mlp.linear_fc1", torch.cat([get("feed_forward.w1"), get("feed_forward.w3")])
    yield "mlp.linear_fc2", get("feed_forward.w2")


def pack_groups(parts: list[Tensor], groups: int) -> Tensor:
    """Stack projections ``[rows, width]`` so that the rows of one query group lie together."""
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)


class PublishedModel(nn.Module):
    """A decoder on one rank, called with ids as the published PyTorch models are.

    Attributes:
        decoder: the :class:`cosmos_hpc.models.decoder.CosmosDecoder`.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits ``[batch, sequence, output vocabulary]`` of int ids ``[batch, sequence]``.

        Args:
            ids: ids, at most a sample's inputs.
            context: text embedding ``[batch, text positions, context_width]``, for models with
                text.
        """
        logits: Tensor = self.decoder(input_ids=ids, context=context)
        return logits


def from_published(weights: Mapping[str, Tensor], config: ModelConfig) -> PublishedModel:
    """A model on the CPU in float32 with published weights.

    Args:
        weights: tensors by the names of :func:`published_shapes`, any float dtype.
        config: the architecture that they are of.

    Raises:
        RequestError: the weights are not of this architecture; names what differs.
    """
    from cosmos_hpc.models.decoder import CosmosDecoder
    from cosmos_hpc.models.megatron import megatron_config

    check_published(weights, config)
    _one_rank()
    decoder = CosmosDecoder(
        megatron_config(config, cpu=True), config, pre_process=True, post_process=True
    )
    state: dict[str, Any] = {
        name: tensor.to(torch.float32) for name, tensor in to_megatron(weights, config)
    }
    decoder.load_state_dict(state, strict=True)
    return PublishedModel(decoder)


def _one_rank() -> None:
    """Megatron's parallel state of a single process, unless there is one already."""
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        return
    if not torch.distributed.is_initialized():
        store = Path(tempfile.mkdtemp()) / "store"
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=0, world_size=1
        )
    parallel_state.initialize_model_parallel()
