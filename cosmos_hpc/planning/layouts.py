"""Chooses how a training is spread over GPUs, from the memory that a step takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.sections import Train
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.adapters import num_adapter_parameters
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.parts import belongs
from cosmos_hpc.models.shapes import published_shapes
from cosmos_hpc.planning.memory import Layout, Memory, Recompute, Trained, training_memory

#: Share of a GPU's memory that a step may take. Something is needed for CUDA, NCCL and
#: fragmentation in any case; comfortable leaves room for surprises as well.
POSSIBLE, COMFORTABLE = 0.95, 0.8
#: Beyond, all models' key heads would have to be shared.
MAX_TENSOR_PARALLEL = 8
#: As far as is looked for what would do.
MAX_GPUS = 64
#: In the order in which they cost time.
_RECOMPUTATIONS: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Sizing:
    """A layout, what it takes, and what else there would be.

    Attributes:
        layout: how the training is spread.
        memory: of a step on one GPU; None without GPUs.
        minimum: the layout of fewest GPUs that fits; None where none does.
        recommended: the layout of fewest GPUs that needs no recomputation and leaves a fifth of the
            memory free; None where none does.
    """

    layout: Layout
    memory: Memory | None = None
    minimum: Layout | None = None
    recommended: Layout | None = None


def trained_of(train: Train, model: ModelConfig) -> Trained:
    """What of a model a recipe trains."""
    if train.lora:
        adapters = num_adapter_parameters(model, train.lora.rank, train.lora.targets)
        return Trained(frozen=None, adapters=adapters)
    shapes = published_shapes(model).items() if train.freeze else ()
    return Trained(sum(math.prod(shape) for name, shape in shapes if belongs(name, train.freeze)))


def size(recipe: Recipe, cluster: Cluster) -> Sizing:
    """Resolve the layout of a recipe's training on a cluster.

    What the recipe sets stays; the rest is chosen: the recommended layout where the cluster has
    the GPUs for it, else the one that recomputes least on as few GPUs as that allows.

    Raises:
        RequestError: nothing fits; says how many GPUs would do.
    """
    train, model = recipe.train, recipe.model_for_clips()
    if not cluster.max_gpus:
        return Sizing(_on_cpus(train))
    free = train.model_copy(
        update=dict.fromkeys(("gpus", "tensor_parallel", "sequence_parallel", "recompute"))
    )
    trained = trained_of(train, model)

    def memory(layout: Layout) -> Memory:
        return training_memory(model, layout, trained)

    def first(layouts: list[Layout], share: float) -> Layout | None:
        fits = (x for x in layouts if memory(x).total <= share * cluster.gpu_bytes)
        return next(fits, None)

    anything = list(_layouts(free, model, MAX_GPUS, cluster.node_gpus))
    minimum = first(anything, POSSIBLE)
    recommended = first(_without_recomputation(anything), COMFORTABLE)
    allowed = list(_layouts(train, model, cluster.max_gpus, cluster.node_gpus))
    # The fewest GPUs that are comfortable, else what recomputes least of all that fits.
    by_cost = sorted(allowed, key=lambda x: _RECOMPUTATIONS.index(x.recompute))
    chosen = first(_without_recomputation(allowed), COMFORTABLE) or first(by_cost, POSSIBLE)
    if chosen is None:
        raise RequestError(_does_not_fit(recipe, cluster, allowed, minimum, memory))
    return Sizing(chosen, memory(chosen), minimum, recommended)


def _without_recomputation(layouts: list[Layout]) -> list[Layout]:
    return [layout for layout in layouts if layout.recompute == "none"]


def _on_cpus(train: Train) -> Layout:
    tensor = train.tensor_parallel or 1
    if train.sequence_parallel and tensor == 1:
        raise RequestError("train.sequence_parallel needs train.tensor_parallel above 1")
    return Layout(
        tensor_parallel=tensor,
        data_parallel=(train.gpus or tensor) // tensor,
        sequence_parallel=bool(train.sequence_parallel),
        recompute=train.recompute or "none",
        micro_batch_size=train.micro_batch_size,
        precision=train.precision,
    )


def _layouts(train: Train, model: ModelConfig, max_gpus: int, node_gpus: int) -> Iterator[Layout]:
    """Layouts that the settings allow: fewest GPUs first, then what recomputes and splits least."""
    counts = [train.gpus] if train.gpus else [2**i for i in range(max_gpus.bit_length())]
    recomputations = [train.recompute] if train.recompute else _RECOMPUTATIONS
    for gpus in (n for n in counts if n <= max_gpus):
        for recompute in recomputations:
            for tensor in _tensor_parallel(train, model, gpus, node_gpus):
                data = gpus // tensor
                if train.global_batch_size % (data * train.micro_batch_size):
                    continue
                possible = tensor > 1 and model.sequence_length % tensor == 0
                if train.sequence_parallel and not possible:
                    continue
                sequence = possible if train.sequence_parallel is None else train.sequence_parallel
                yield Layout(
                    tensor, data, sequence, recompute, train.micro_batch_size, train.precision
                )


def _tensor_parallel(train: Train, model: ModelConfig, gpus: int, node_gpus: int) -> list[int]:
    if train.tensor_parallel:
        return [train.tensor_parallel] if gpus % train.tensor_parallel == 0 else []
    # Tensor parallelism stays within a node.
    most = min(MAX_TENSOR_PARALLEL, node_gpus)
    sizes = [2**i for i in range(most.bit_length())]
    rank = train.lora.rank if train.lora else 0
    return [n for n in sizes if gpus % n == 0 and rank % n == 0 and model.splits(n) is None]


def _does_not_fit(
    recipe: Recipe,
    cluster: Cluster,
    allowed: list[Layout],
    minimum: Layout | None,
    memory: Callable[[Layout], Memory],
) -> str:
    train = recipe.train
    enough = "no number of such GPUs would do"
    if minimum:
        enough = f"the fewest such GPUs that would do are {minimum.gpus} ({minimum})"
    if not allowed:
        asked = f"train.gpus={train.gpus}" if train.gpus else f"up to {cluster.max_gpus} GPUs"
        return (
            f"recipe {recipe.name} cannot be spread over {asked} as its settings of train ask: "
            f"global_batch_size={train.global_batch_size} in micro batches of "
            f"{train.micro_batch_size} must divide among the copies of the model, and "
            f"sequence_parallel needs tensor_parallel above 1; {enough}"
        )
    best = min(allowed, key=lambda x: memory(x).total)
    needs = memory(best).total / 1e9
    return (
        f"recipe {recipe.name} needs {needs:.0f} GB a GPU with {best.gpus} of them ({best}), and "
        f"they have {cluster.gpu_bytes / 1e9:.0f} GB, of which {POSSIBLE:.0%} can be used; {enough}"
    )
