"""Published weights in a decoder: the parts that a rank holds, and a model to call on a CPU."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch import Tensor, nn

from cosmos_hpc.models.checkpoint_reader import PublishedWeights, Weights
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.megatron import megatron_config
from cosmos_hpc.models.weights import weights_of


def load_weights(decoder: CosmosDecoder, model: ModelConfig, weights: Weights) -> list[str]:
    """Copy weights into a decoder, of each the part that this tensor-parallel rank holds.

    Where the parts lie is what the decoder says for Megatron's distributed checkpoints.

    Returns:
        Names of the weights that are not in the source and stay as they were initialised.

    Raises:
        RequestError: they are of another architecture, or damaged.
    """
    weights.expect(model, may_be_new=True)
    places = _places(decoder)
    new = []
    for weight in weights_of(model):
        if not weights.has(weight):
            new.append(weight.name)
            continue
        whole = weights.read(weight)
        for shard in places[weight.key, weight.layer]:
            part = whole
            offsets = shard.global_offset[shard.prepend_axis_num :]
            for axis, (start, length) in enumerate(zip(offsets, shard.local_shape, strict=True)):
                part = part.narrow(axis, start, length)
            with torch.no_grad():
                shard.data.copy_(part)
    return new


def _places(decoder: CosmosDecoder) -> dict[tuple[str, int | None], list[ShardedTensor]]:
    """Where this rank holds what, by key and layer."""
    state = decoder.sharded_state_dict()
    # Gate and up projection are one parameter and two parts of a checkpoint.
    apply_factories(state)
    places = defaultdict(list)
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor):
            layer = shard.global_offset[0] if shard.prepend_axis_num else None
            places[shard.key, layer].append(shard)
    return places


class PublishedModel(nn.Module):
    """A decoder on one rank, called with ids as the published PyTorch models are.

    Attributes:
        decoder: the :class:`cosmos_hpc.models.decoder.CosmosDecoder`.
    """

    def __init__(self, decoder: CosmosDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, ids: Tensor, context: Tensor | None = None, action: Tensor | None = None
    ) -> Tensor:
        """Logits ``[batch, sequence, output vocabulary]`` of int ids ``[batch, sequence]``.

        Args:
            ids: ids, at most a sample's inputs.
            context: text embedding ``[batch, text positions, context_width]``, for models with
                text.
            action: ``[batch, action_width]``, for models with actions, in place of ``context``.
        """
        logits: Tensor = self.decoder(input_ids=ids, context=context, action=action)
        return logits


def from_published(weights: Mapping[str, Tensor], config: ModelConfig) -> PublishedModel:
    """A model on the CPU in float32 with published weights.

    Args:
        weights: tensors by the names of :func:`cosmos_hpc.models.weights.published_shapes`, any
            float dtype.
        config: the architecture that they are of.

    Raises:
        RequestError: the weights are not of this architecture; names what differs.
    """
    source = PublishedWeights(weights, "the state dict")
    # Before a decoder of the wrong size is built.
    source.expect(config, may_be_new=True)
    _one_rank()
    # Transformer Engine cannot run on a CPU, also where it is installed.
    settings = megatron_config(config, cpu=True, transformer_impl="local")
    decoder = CosmosDecoder(settings, config, pre_process=True, post_process=True)
    load_weights(decoder, config, source)
    return PublishedModel(decoder)


def _one_rank() -> None:
    """Megatron's parallel state of a single process, unless there is one already."""
    if parallel_state.model_parallel_is_initialized():
        return
    if not torch.distributed.is_initialized():
        store = Path(tempfile.mkdtemp()) / "store"
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=0, world_size=1
        )
    parallel_state.initialize_model_parallel()
