"""How the state of Megatron's distributed optimizer gets into a checkpoint and out of it.

Every rank of the optimizer has a contiguous part of the weights in float32, and of their moments. A
checkpoint has them by the model's parameters, so that any layout reads it ("fully reshardable").
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

#: What is saved of every parameter, by the names of Megatron's format.
_KEYS = ("param", "exp_avg", "exp_avg_sq")


class _Place(NamedTuple):
    """Where a parameter lies among the ranks of the optimizer.

    Attributes:
        parameter: of the model.
        own: Megatron's ranges of what this rank has of it; None for nothing.
        first: rank that has its first element.
        sizes: elements on this and each following rank that has some.
    """

    parameter: torch.nn.Parameter
    own: Mapping[str, Any] | None
    first: int
    sizes: list[int]


def save_by_parameter() -> None:
    """Let each rank save the parameters that begin in its part, and load those that it has part of.

    Megatron-Core 0.15.3 gathers all of the state on every rank: 12 bytes of host memory for each
    parameter and rank, and 8 or more of the GPU's beside what is there, which a training that fills
    its memory does not have. Where its buffers have several buckets with space between them, as
    with communication that overlaps, it also looks for parameters behind that space in the wrong
    places.
    """
    DistributedOptimizer.sharded_param_state_fully_reshardable = _sharded_state


def _sharded_state(
    self: DistributedOptimizer, model_state: Any, is_loading: bool = False, metadata: Any = None
) -> dict[int, dict[str, ShardedTensor | ShardedTensorFactory]]:
    """In place of Megatron's method: by number of the parameter, its weight and moments."""
    tensors, _ = extract_sharded_tensors_and_factories(model_state)
    forms = {form.data: form for form in nested_values(tensors)}
    rank = self.data_parallel_group.rank()
    state = {}
    for number, place in enumerate(_places(self)):
        form = forms[place.parameter]
        if is_loading:
            found = {key: torch.empty(form.data.shape) for key in _KEYS} if place.own else None
        else:
            found = _whole(self, place)
        if found:
            # The copy on the first rank counts.
            copy = rank - place.first
            state[number] = {key: _as(form, key, value, copy) for key, value in found.items()}
    return state


def _places(optimizer: DistributedOptimizer) -> Iterator[_Place]:
    """Of all parameters, in the order of their numbers."""
    ranks = optimizer.data_parallel_group.size()
    for buffer, ranges in zip(optimizer.buffers, optimizer.gbuf_ranges, strict=True):
        (buckets,) = ranges.values()  # of one dtype
        own = ChainMap(*(bucket["param_map"] for bucket in buckets))
        for parameter, (start, end, number) in buffer.param_index_map.items():
            bucket = buffer.buckets[number]
            part = bucket.grad_data.numel() // ranks
            start, end = start - bucket.offset, end - bucket.offset
            first, last = start // part, (end - 1) // part
            sizes = [
                min(end, (rank + 1) * part) - max(start, rank * part)
                for rank in range(first, last + 1)
            ]
            yield _Place(parameter, own.get(parameter), first, sizes)


def _whole(optimizer: DistributedOptimizer, place: _Place) -> dict[str, Tensor] | None:
    """A parameter's state in float32 on the CPU; None where it begins on another rank."""
    group = optimizer.data_parallel_group
    state = _own_state(optimizer, place)
    if len(place.sizes) > 1:
        # Of a parameter that lies on several ranks, all take part in what the first one gathers.
        gathered = (
            torch.empty(len(_KEYS), sum(place.sizes)) if group.rank() == place.first else None
        )
        parts = (
            gathered.split(place.sizes, 1) if gathered is not None else [None] * len(place.sizes)
        )
        for rank, (size, part) in enumerate(zip(place.sizes, parts, strict=True), place.first):
            _send(state if group.rank() == rank else None, part, size, group, rank)
        state = gathered
    if group.rank() != place.first:
        return None
    assert state is not None
    return dict(zip(_KEYS, state.view(len(_KEYS), *place.parameter.shape), strict=True))


def _own_state(optimizer: DistributedOptimizer, place: _Place) -> Tensor | None:
    """This rank's part of a parameter's state, float32 ``[3, elements]`` on the CPU."""
    if place.own is None:
        return None
    tensors = optimizer._get_main_param_and_optimizer_states(place.parameter)
    return torch.stack([tensors[key].detach().view(-1).float().cpu() for key in _KEYS])


def _send(
    state: Tensor | None,
    target: Tensor | None,
    size: int,
    group: torch.distributed.ProcessGroup,
    rank: int,
) -> None:
    """Copy the state of one rank to the target of another, by way of the GPUs.

    Args:
        state: on the rank that has it, ``[3, size]`` on the CPU; None on others.
        target: likewise, where it is wanted.
        size: elements of a row.
        group: ranks that all call this.
        rank: that has the state, in the group.
    """
    for number in range(len(_KEYS)):
        row = torch.empty(size) if state is None else state[number]
        sent = row.cuda()
        torch.distributed.broadcast(sent, group=group, group_src=rank)
        if target is not None:
            target[number].copy_(sent)


def _as(
    form: ShardedTensor | ShardedTensorFactory, key: str, value: Tensor, copy: int
) -> ShardedTensor | ShardedTensorFactory:
    """A tensor of a parameter's state, in the form in which its weight is saved."""
    changes: dict[str, Any] = {
        "key": f"optimizer.state.{key}.{form.key}",
        "data": value.view(form.data.shape),
        "replica_id": (*form.replica_id[:2], copy),
    }
    if isinstance(form, ShardedTensor):
        changes["dtype"] = value.dtype
    return replace(form, **changes)
