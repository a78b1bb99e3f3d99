"""Published weights in a decoder: the parts that a rank holds, and a model to call on a CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch import Tensor, nn

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.checkpoints.published_files import PublishedWeights
from cosmos_hpc.models.checkpoints.stored import Weights
from cosmos_hpc.models.checkpoints.weights import weights_of
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.megatron import megatron_config


def load_weights(decoder: CosmosDecoder, model: ModelConfig, weights: Weights) -> list[str]:
    """Copy weights into a decoder: of each weight the part of this tensor-parallel rank.

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
        config: the architecture.
    """

    def __init__(self, decoder: CosmosDecoder, config: ModelConfig) -> None:
        super().__init__()
        self.decoder, self.config = decoder, config

    def forward(
        self, ids: Tensor, context: Tensor | None = None, action: Tensor | None = None
    ) -> Tensor:
        """Logits ``[batch, sequence, output vocabulary]``, float32.

        Args:
            ids: of any integer dtype, ``[batch, sequence]``; at most a sample's inputs.
            context: text embedding ``[batch, text positions, context_width]``, for models with
                text.
            action: ``[batch, action_width]``, for models with actions, in place of ``context``.

        Raises:
            ValueError: the arguments are not those of this model.
        """
        self._check(ids, context, action)
        logits: Tensor = self.decoder(input_ids=ids.long(), context=context, action=action)
        return logits

    def _check(self, ids: Tensor, context: Tensor | None, action: Tensor | None) -> None:
        config = self.config
        if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex():
            raise ValueError(f"ids are integers [batch, sequence], not {_describe(ids)}")
        if not 0 < ids.shape[1] <= config.sequence_length:
            raise ValueError(
                f"{ids.shape[1]} tokens; a sample of this model has 1 to {config.sequence_length}"
            )
        batch, width = ids.shape[0], config.context_width
        if width is None and (context is not None or action is not None):
            raise ValueError("this model takes neither a context nor an action")
        if width is not None and (context is None) == (action is None):
            raise ValueError("this model needs a context, or an action if it has a head for them")
        if context is not None and (context.ndim != 3 or context.shape[::2] != (batch, width)):
            raise ValueError(
                f"context is [{batch}, text positions, {width}], not {_describe(context)}"
            )
        if action is not None and action.shape != (batch, config.action_width):
            raise ValueError(f"action is [{batch}, {config.action_width}], not {_describe(action)}")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def from_published(weights: Mapping[str, Tensor], config: ModelConfig) -> PublishedModel:
    """A model on the CPU in float32 with published weights.

    Megatron wants a process group: where there is none, one of this process alone is made.

    Args:
        weights: tensors by the names of :func:`cosmos_hpc.models.shapes.published_shapes`, any
            float dtype.
        config: the architecture that they are of.

    Raises:
        RequestError: the weights are not of this architecture, which names what differs, or this
            process is one of several tensor-parallel ranks.
    """
    source = PublishedWeights(weights, "the state dict")
    # Before a decoder of the wrong size is built.
    source.expect(config, may_be_new=True)
    one_rank()
    # Transformer Engine cannot run on a CPU, also where it is installed.
    settings = megatron_config(config, cpu=True, transformer_impl="local")
    decoder = CosmosDecoder(settings, config, pre_process=True, post_process=True)
    load_weights(decoder, config, source)
    return PublishedModel(decoder, config)


def one_rank() -> None:
    """Megatron's parallel state of a single process, unless there is one already."""
    if parallel_state.model_parallel_is_initialized():
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            raise RequestError("from_published needs a process without tensor parallelism")
        return
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
