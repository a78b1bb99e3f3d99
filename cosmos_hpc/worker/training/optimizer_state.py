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

from cosmos_hpc.worker.training.adam import joined, split

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


def keep_by_parameter() -> None:
    """Let each rank save the parameters that begin in its part, and load those that it has part of.

    Megatron-Core 0.15.3 gathers all of the state on every rank: 12 bytes of host memory for each
    parameter and rank, and 8 or more of the GPU's beside what is there, which a training that fills
    its memory does not have. Where its buffers have several buckets with space between them, as
    with communication that overlaps, it also looks for parameters behind that space in the wrong
    places. Of weights in two halves (:func:`~cosmos_hpc.worker.training.adam.split`) it saves one.

    Three more faults show with PyTorch's AdamW, also in one pass. When a run resumes, Megatron
    reads the step of an optimizer that has none yet. It expects a step in every parameter's saved
    state, where it saves none. And the step that it sets is one tensor of all parameters, which is
    counted up once for each of them.
    """
    read, write = (
        DistributedOptimizer.sharded_state_dict,
        DistributedOptimizer._set_main_param_and_optimizer_states,
    )

    def sharded_state_dict(
        self: DistributedOptimizer, model: Any, is_loading: bool = False, **kwargs: Any
    ) -> Any:
        adam = self.optimizer
        if is_loading and isinstance(adam, torch.optim.Adam | torch.optim.AdamW):
            self.init_state_fn(adam, self.config)
            for state in adam.state.values():
                state.setdefault("step", torch.zeros(()))
        return read(self, model, is_loading=is_loading, **kwargs)

    def set_states(self: DistributedOptimizer, parameter: Any, tensors: dict[str, Any]) -> None:
        part = _part(self, parameter)
        state = self.optimizer.state[part]
        if "master_param" in state and state["master_param"].dtype == torch.int16:
            high, low = split(tensors["param"].to(part.device))
            part.detach().copy_(high.view(part.dtype))
            tensors = {**tensors, "param": low}
        # The step itself has been loaded before, from the groups of parameters.
        if "step" in state:
            state["step"] = state["step"].clone()
            tensors = {"step": state["step"], **tensors}
        write(self, parameter, tensors)

    DistributedOptimizer.sharded_state_dict = sharded_state_dict
    DistributedOptimizer._set_main_param_and_optimizer_states = set_states
    DistributedOptimizer.sharded_param_state_fully_reshardable = _sharded_state


def _part(optimizer: DistributedOptimizer, parameter: torch.nn.Parameter) -> Tensor:
    """This rank's part of a parameter, as the optimizer updates it."""
    group, place = optimizer.model_param_group_index_map[parameter]
    part: Tensor = optimizer.optimizer.param_groups[group]["params"][place]
    return part


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
    """A parameter's state in float32 on the CPU; None where it begins on another rank.

    Of one that lies on several ranks, all ranks take part in what the first one gathers.
    """
    group = optimizer.data_parallel_group
    own = _own_state(optimizer, place) if place.own else {}
    whole = {}
    for key in _KEYS:
        value = own.pop(key, None)
        if len(place.sizes) > 1:
            value = _gathered(value, place, group)
        if group.rank() == place.first:
            assert value is not None
            whole[key] = value
    return whole or None


def _own_state(optimizer: DistributedOptimizer, place: _Place) -> dict[str, Tensor]:
    """This rank's part of a parameter's state, one-dimensional, float32 on the CPU."""
    state = optimizer._get_main_param_and_optimizer_states(place.parameter)
    if state["param"].dtype == torch.int16:
        bits = _part(optimizer, place.parameter).detach().view(torch.int16)
        state["param"] = joined(bits, state["param"])
    return {key: state[key].detach().flatten().float().cpu() for key in _KEYS}


def _gathered(
    own: Tensor | None, place: _Place, group: torch.distributed.ProcessGroup
) -> Tensor | None:
    """The parts of all ranks behind each other, on the first of them; sent by the GPUs.

    Args:
        own: this rank's part, on the CPU; None where it has none.
        place: where the parts are.
        group: ranks of the optimizer, which all call this.
    """
    is_first = group.rank() == place.first
    whole = torch.empty(sum(place.sizes)) if is_first else None
    parts = whole.split(place.sizes) if whole is not None else [None] * len(place.sizes)
    for rank, (size, part) in enumerate(zip(place.sizes, parts, strict=True), place.first):
        if group.rank() == rank:
            assert own is not None
            sent = own.cuda()
        else:
            sent = torch.empty(size, device="cuda")
        torch.distributed.broadcast(sent, group=group, group_src=rank)
        if part is not None:
            part.copy_(sent)
    return whole


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
