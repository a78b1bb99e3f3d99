"""Chooses how a training is spread over GPUs, from the memory and the time that a step takes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.gpus import UNKNOWN_GPU
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.sections import Train
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.adapters import num_adapter_parameters
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.parts import belongs
from cosmos_hpc.models.shapes import published_shapes
from cosmos_hpc.planning.memory import Layout, Memory, Recompute, Trained, training_memory
from cosmos_hpc.planning.speed import RATES, StepTime, step_time

#: Share of a GPU's memory that a step may take. Something is needed for CUDA, NCCL and
#: fragmentation in any case; comfortable leaves room for surprises as well.
POSSIBLE, COMFORTABLE = 0.92, 0.75
#: Ranks that share a sample; beyond, all models' key heads would have to be shared.
MAX_PARALLEL = 8
#: As far as is looked for what would do.
MAX_GPUS = 64
#: A plan mentions other settings where a step with them takes at most this share of its time.
_WORTH = 0.95
#: How many larger numbers of GPUs a plan compares.
_FURTHER = 3
#: Settings that are chosen where the recipe leaves them open.
_CHOSEN = (
    "gpus",
    "tensor_parallel",
    "context_parallel",
    "sequence_parallel",
    "recompute",
    "recompute_layers",
)
#: In the order in which they cost time.
_RECOMPUTATIONS: tuple[Recompute, ...] = ("none", "selective", "full")


class Sizing(Struct, frozen=True):
    """A layout, what it takes, and what else there would be.

    Attributes:
        layout: how the training is spread.
        memory: of a step on one GPU; None without GPUs.
        minimum: the layout of fewest GPUs that fits; None where none does.
        recommended: the fastest layout of the fewest GPUs that need no recomputation and leave a
            fifth of the memory free; None where none does.
        time: of a step; None where the speed of the GPUs is not known.
        further: layouts of more GPUs, the fastest of each number, with their times.
        in_bf16: settings of what is kept in bf16, with which as many GPUs would be faster, the
            layout and the time; None where none is worth it.
    """

    layout: Layout
    memory: Memory | None = None
    minimum: Layout | None = None
    recommended: Layout | None = None
    time: StepTime | None = None
    further: tuple[tuple[Layout, StepTime], ...] = ()
    in_bf16: tuple[str, Layout, StepTime] | None = None


def trained_of(train: Train, model: ModelConfig) -> Trained:
    """Which parts of a model a recipe trains."""
    if train.lora:
        adapters = num_adapter_parameters(model, train.lora.rank, train.lora.targets)
        return Trained(frozen=None, adapters=adapters)
    shapes = published_shapes(model).items() if train.freeze else ()
    return Trained(sum(math.prod(shape) for name, shape in shapes if belongs(name, train.freeze)))


def size(recipe: Recipe, cluster: Cluster) -> Sizing:
    """Resolve the layout of a recipe's training on a cluster.

    What the recipe sets stays; the rest is chosen: the fastest layout that fits. A cluster that
    others use gives as many GPUs as the recommended layout takes, if it has that many; one that
    nobody else waits for gives all.

    Raises:
        RequestError: nothing fits; says how many GPUs would do.
    """
    train, model = recipe.train, recipe.model_for_clips()
    if (train.recompute_layers or 0) > model.num_layers:
        raise RequestError(
            f"train.recompute_layers={train.recompute_layers}, but the model has "
            f"{model.num_layers} layers; leave it out to recompute all"
        )
    if not cluster.max_gpus:
        return Sizing(_on_cpus(train))
    search = _Search(recipe, cluster)
    anything = search.layouts(_free(train), MAX_GPUS)
    minimum = search.first(anything, POSSIBLE)
    recommended = search.recommended(anything)
    allowed = search.layouts(train, cluster.max_gpus)
    chosen = search.choose(allowed)
    if chosen is None:
        raise RequestError(_does_not_fit(recipe, cluster, allowed, minimum, search.memory))
    known = isinstance(cluster.gpu, str) and train.precision == "bf16"
    more = replace(_free(train), recompute=train.recompute) if known else None
    return Sizing(
        chosen,
        search.memory(chosen),
        minimum,
        recommended,
        search.time(chosen) if known else None,
        search.further(search.layouts(more, MAX_GPUS), chosen.gpus) if more else (),
        _faster_in_bf16(recipe, cluster, chosen, search.time(chosen).total) if known else None,
    )


def _free(train: Train) -> Train:
    """Settings without those that are chosen where they are left open."""
    return replace(train, **dict.fromkeys(_CHOSEN))


def _rounding_more(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """The recipe with moments, and then with gradients as well, in bf16; with these settings."""
    for names in (("moment_precision",), ("moment_precision", "gradient_precision")):
        changes = {name: "bf16" for name in names if getattr(recipe.train, name) != "bf16"}
        # Not of adapters, of float32, and of another AdamW.
        with contextlib.suppress(ValueError):
            other = replace(recipe, train=replace(recipe.train, **changes))
            if changes:
                yield " and ".join(f"train.{name}=bf16" for name in changes), other


def _faster_in_bf16(
    recipe: Recipe, cluster: Cluster, chosen: Layout, seconds: float
) -> tuple[str, Layout, StepTime] | None:
    """What would be enough faster than these seconds, with as few settings as possible."""
    found = None
    for settings, other in _rounding_more(recipe):
        search = _Search(other, cluster)
        layouts = search.layouts(replace(other.train, gpus=chosen.gpus), chosen.gpus)
        best = search.fastest(layouts)
        if best is not None and search.time(best).total <= _WORTH * seconds:
            found = settings, best, search.time(best)
            seconds = found[2].total
    return found


def _optimizer_bytes(train: Train) -> int:
    if train.moment_precision == "bf16":
        return 6
    return 10 if train.fuses_adam else 12


def _on_cpus(train: Train) -> Layout:
    if train.sequence_parallel and (train.tensor_parallel or 1) == 1:
        raise RequestError("train.sequence_parallel needs train.tensor_parallel above 1")
    return Layout(
        tensor_parallel=train.tensor_parallel or 1,
        context_parallel=train.context_parallel or 1,
        data_parallel=(train.gpus or train.ranks_per_sample) // train.ranks_per_sample,
        sequence_parallel=bool(train.sequence_parallel),
        recompute=train.recompute or ("full" if train.recompute_layers else "none"),
        recompute_layers=train.recompute_layers,
        micro_batch_size=train.micro_batch_size,
        precision=train.precision,
    )


class _Search:
    """Layouts of a recipe on a cluster's GPUs, their memory and time."""

    def __init__(self, recipe: Recipe, cluster: Cluster) -> None:
        self._recipe, self._model = recipe, recipe.model_for_clips()
        self._trained = trained_of(recipe.train, self._model)
        self._bytes, self._node_gpus = cluster.gpu_bytes, cluster.node_gpus
        self._all_gpus, self._max_gpus = cluster.takes_all_gpus, cluster.max_gpus
        gpu = cluster.gpu if isinstance(cluster.gpu, str) else UNKNOWN_GPU
        self._rates = RATES[gpu]
        self._fusions = recipe.train.fused

    def memory(self, layout: Layout) -> Memory:
        """Of a step, on one GPU."""
        return training_memory(self._model, layout, self._trained, self._fusions)

    def time(self, layout: Layout) -> StepTime:
        """Of a step."""
        batch = self._recipe.train.global_batch_size
        return step_time(
            self._model,
            layout,
            batch,
            self._rates,
            self._node_gpus,
            fusions=self._fusions,
            trained=self._trained,
        )

    def layouts(self, train: Train, max_gpus: int) -> list[Layout]:
        """What the settings allow: fewest GPUs first, then what recomputes and splits least."""
        counts = [train.gpus] if train.gpus else self._counts(max_gpus)
        recomputations = [train.recompute] if train.recompute else _RECOMPUTATIONS
        if train.recompute_layers:
            recomputations = ["full"]
        found = []
        for gpus in (n for n in counts if n <= max_gpus):
            for recompute in recomputations:
                for tensor, context in self._splits(train, gpus):
                    layout = self._layout(train, gpus, tensor, context, recompute)
                    if layout is not None:
                        found += self._some_layers(train, layout)
        return found

    def _counts(self, max_gpus: int) -> list[int]:
        """Numbers of GPUs to try: within a node, and of complete nodes."""
        doubled = [2**i for i in range(max_gpus.bit_length())]
        within = [n for n in [*doubled, self._max_gpus] if n <= self._node_gpus]
        nodes = [n * self._node_gpus for n in doubled]
        return sorted({n for n in [*within, *nodes] if n <= max_gpus})

    def _layout(
        self, train: Train, gpus: int, tensor: int, context: int, recompute: Recompute
    ) -> Layout | None:
        data = gpus // (tensor * context)
        if train.global_batch_size % (data * train.micro_batch_size):
            return None
        possible = tensor > 1 and self._model.sequence_length % (tensor * context) == 0
        if train.sequence_parallel and not possible:
            return None
        return Layout(
            tensor_parallel=tensor,
            context_parallel=context,
            data_parallel=data,
            sequence_parallel=possible
            if train.sequence_parallel is None
            else train.sequence_parallel,
            recompute=recompute,
            micro_batch_size=train.micro_batch_size,
            precision=train.precision,
            recompute_layers=train.recompute_layers,
            gradient_bytes=4 if train.gradient_precision == "fp32" else 2,
            optimizer_bytes=_optimizer_bytes(train),
        )

    def _some_layers(self, train: Train, layout: Layout) -> list[Layout]:
        """The layout, and before it one that recomputes only the layers that memory asks for."""
        if layout.recompute != "full" or train.recompute or train.recompute_layers:
            return [layout]
        every = self.memory(layout)
        none = self.memory(replace(layout, recompute="none"))
        layers = self._model.num_layers
        a_layer = (none.activations - every.activations) / layers
        needed = layers - int((POSSIBLE * self._bytes - every.total) // a_layer)
        if not 0 < needed < layers:
            return [layout]
        return [replace(layout, recompute_layers=needed), layout]

    def _splits(self, train: Train, gpus: int) -> list[tuple[int, int]]:
        """Tensor and context parallelism to try: first those without the latter."""
        # Ranks that share a sample stay within a node.
        most = min(MAX_PARALLEL, self._node_gpus)
        sizes = [2**i for i in range(most.bit_length())]
        tensors = [train.tensor_parallel] if train.tensor_parallel else sizes
        contexts = [train.context_parallel] if train.context_parallel else sizes
        if train.transformer_impl == "transformer_engine":
            contexts = [1]
        return [
            (tensor, context)
            for context in contexts
            for tensor in tensors
            if gpus % (tensor * context) == 0
            and tensor * context <= max(most, train.ranks_per_sample)
            and self._possible(train, tensor, context)
        ]

    def _possible(self, train: Train, tensor: int, context: int) -> bool:
        rank = train.lora.rank if train.lora else 0
        return (
            rank % tensor == 0
            and self._model.sequence_length % context == 0
            and self._model.splits(tensor, context) is None
        )

    def _fitting(self, layouts: Iterable[Layout], share: float) -> Iterator[Layout]:
        most = share * self._bytes
        return (x for x in layouts if self.memory(x).total <= most)

    def first(self, layouts: Iterable[Layout], share: float) -> Layout | None:
        """The first that fits into a share of the memory."""
        return next(self._fitting(layouts, share), None)

    def fastest(self, layouts: Iterable[Layout]) -> Layout | None:
        """Of those that fit; of equally fast ones the first."""
        fitting = self._fitting(layouts, POSSIBLE)
        return min(fitting, key=lambda x: self.time(x).total, default=None)

    def recommended(self, layouts: list[Layout]) -> Layout | None:
        """The fastest of the fewest GPUs that recompute nothing and leave room."""
        plain = [x for x in layouts if x.recompute == "none"]
        enough = self.first(plain, COMFORTABLE)
        if enough is None:
            return None
        same = [x for x in plain if x.gpus == enough.gpus]
        return self.fastest(self._fitting(same, COMFORTABLE))

    def choose(self, layouts: list[Layout]) -> Layout | None:
        """The fastest of all GPUs, or where others wait for them, of as few as are enough.

        Those are as many as are recommended, or else as let the training recompute least.
        """
        if not self._all_gpus:
            by_cost = sorted(layouts, key=lambda x: _RECOMPUTATIONS.index(x.recompute))
            enough = self.recommended(layouts) or self.first(by_cost, POSSIBLE)
            layouts = [x for x in layouts if enough and x.gpus == enough.gpus]
        return self.fastest(layouts)

    def further(self, layouts: list[Layout], gpus: int) -> tuple[tuple[Layout, StepTime], ...]:
        """The fastest of each larger number of GPUs, with its time."""
        found = []
        for count in sorted({x.gpus for x in layouts if x.gpus > gpus})[:_FURTHER]:
            best = self.fastest(x for x in layouts if x.gpus == count)
            if best is not None:
                found.append((best, self.time(best)))
        return tuple(found)


def _fewest(recipe: Recipe, cluster: Cluster, minimum: Layout | None) -> str:
    """How many GPUs would do, with which settings."""
    train = recipe.train
    enough, gpus = "no number of such GPUs would do", MAX_GPUS + 1
    if minimum:
        gpus = minimum.gpus
        enough = f"the fewest such GPUs that would do are {gpus} ({minimum})"
        asked = {name: getattr(train, name) for name in _CHOSEN}
        in_the_way = [f"train.{name}={value}" for name, value in asked.items() if value is not None]
        if gpus <= cluster.max_gpus and in_the_way:
            enough = f"{gpus} would do without {' and '.join(in_the_way)} ({minimum})"
    fewer = ""
    for settings, other in _rounding_more(recipe):
        search = _Search(other, cluster)
        first = search.first(search.layouts(_free(other.train), MAX_GPUS), POSSIBLE)
        if first and first.gpus < gpus:
            gpus, fewer = first.gpus, f", and {first.gpus} with {settings}"
    return enough + fewer


def _does_not_fit(
    recipe: Recipe,
    cluster: Cluster,
    allowed: list[Layout],
    minimum: Layout | None,
    memory: Callable[[Layout], Memory],
) -> str:
    train = recipe.train
    enough = _fewest(recipe, cluster, minimum)
    if not allowed:
        asked = f"train.gpus={train.gpus}" if train.gpus else f"up to {cluster.max_gpus} GPUs"
        return (
            f"recipe {recipe.name} cannot be spread over {asked} as its settings of train ask: "
            f"global_batch_size={train.global_batch_size} in micro batches of "
            f"{train.micro_batch_size} must divide among the copies of the model, "
            f"tensor_parallel times context_parallel must divide the GPUs, and "
            f"sequence_parallel needs tensor_parallel above 1; {enough}"
        )
    best = min(allowed, key=lambda x: memory(x).total)
    needs = memory(best).total / 1e9
    return (
        f"recipe {recipe.name} needs {needs:.0f} GB a GPU with {best.gpus} of them ({best}), and "
        f"they have {cluster.gpu_bytes / 1e9:.0f} GB, of which {POSSIBLE:.0%} can be used; {enough}"
    )
