"""What a recipe becomes on a cluster: tasks, ranks and sizes, and why."""

from __future__ import annotations

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.sections import Train
from cosmos_hpc.errors import RequestError
from cosmos_hpc.planning.generation import GenerationPlan, plan_generation
from cosmos_hpc.planning.layouts import size, trained_of
from cosmos_hpc.planning.memory import Layout, Memory
from cosmos_hpc.planning.plan_text import render
from cosmos_hpc.planning.speed import StepTime
from cosmos_hpc.utils.html import table
from cosmos_hpc.utils.settings import validate

#: Bytes that a parameter takes in a checkpoint: its weight, and where it is trained its optimizer's
#: state: two Adam moments, and with mixed precision the weight in fp32 as well.
_WEIGHT_BYTES, _OPTIMIZER_BYTES = {"fp32": 4, "bf16": 2}, {"fp32": 8, "bf16": 12}
#: Bytes of a node's memory for each trained parameter while a checkpoint is written or read,
#: summed over all ranks: weight and moments in fp32, also of optimizers that keep them in less.
_HOST_BYTES = 12


def checkpoint_bytes(recipe: Recipe) -> int:
    """Size of a checkpoint of a recipe's training; beside adapters it lacks the other weights."""
    train, model = recipe.train, recipe.model_for_clips()
    trained = trained_of(train, model)
    updated = trained.of(model.num_parameters)
    kept = updated if trained.frozen is None else model.num_parameters
    return _WEIGHT_BYTES[train.precision] * kept + _OPTIMIZER_BYTES[train.precision] * updated


def host_bytes(recipe: Recipe) -> int:
    """Memory of all nodes together that writing or reading a checkpoint takes."""
    train, model = recipe.train, recipe.model_for_clips()
    return _HOST_BYTES * trained_of(train, model).of(model.num_parameters)


def most_checkpoints(train: Train) -> int:
    """Checkpoints that are on the disk at a time, at most."""
    written = -(-train.max_steps // train.save_every)
    # Those that are kept, the last one, and the next while it is written.
    return min(written, train.keep_checkpoints + 2)


class Plan(Struct, frozen=True, kw_only=True):
    """What would run.

    Attributes:
        videos: videos to prepare, or inputs to generate from; None before they are known.
        shards: of the preprocess stage; None if not known yet.
        parallel: how many of them run at the same time.
        latent_shape: ``(T, H, W)`` of a clip's tokens.
        sequence_length: inputs of one sample.
        parameters: of the model.
        trained: parameters that are trained: those, fewer with frozen parts, or of adapters.
        gpu: type or GB of the GPUs; None without.
        ranks, layout: of the training; None for what only generates.
        memory: bytes of a step on one GPU, by part; None without GPUs.
        minimum, recommended: layouts of the fewest GPUs that fit at all, and that need no
            recomputation and leave room.
        step_time: seconds of a step, by part; None where the speed of the GPUs is not known.
        train_seconds: of all steps and validations; None where the speed is not known.
        further: GPUs, seconds per step and layout of larger numbers of GPUs; may be empty.
        in_bf16: settings of what is kept in bf16, with which these GPUs would be faster, seconds
            per step and layout; None where none is worth it.
        time_limit: of the training's jobs; None without.
        micro_batches: forward passes of a rank in one step.
        generation: what the generate stage does.
        host_bytes: memory of all nodes together that writing a checkpoint takes.
        disk_bytes: what the run folder will take at most; without tokens before the input is set.
        all_clips: videos give as many clips as they hold, of which ``disk_bytes`` counts one each.
    """

    recipe: str
    cluster: str
    videos: int | None
    shards: int | None
    parallel: int
    latent_shape: tuple[int, int, int]
    sequence_length: int
    parameters: int
    gpu: str | float | None
    ranks: int
    disk_bytes: int
    host_bytes: int = 0
    trained: int = 0
    layout: Layout | None = None
    memory: Memory | None = None
    minimum: Layout | None = None
    recommended: Layout | None = None
    step_time: StepTime | None = None
    train_seconds: float | None = None
    further: list[tuple[int, float, str]] = field(default_factory=list)
    in_bf16: tuple[str, float, str] | None = None
    time_limit: str | None = None
    micro_batches: int = 0
    global_batch_size: int = 0
    max_steps: int = 0
    all_clips: bool = False
    generation: GenerationPlan

    def __repr__(self) -> str:
        return self.render()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return to_builtins(self)

    def _repr_html_(self) -> str:
        title, *lines = self.render().splitlines()
        # A line without a name of its own continues the one before.
        rows = [(line[:14].strip(), line[14:]) for line in lines]
        return table((), rows, title)

    def render(self) -> str:
        """The plan as text for a person."""
        return render(self)


def _train_seconds(recipe: Recipe, step: StepTime) -> float:
    """All steps and validations; a validation's forward pass is a third of the step's."""
    train = recipe.train
    steps = float(train.max_steps)
    if recipe.data.split.validation:
        steps += train.max_steps // train.validate_every * train.validation_batches / 3
    return steps * step.total


def check_gpus(recipe: Recipe, cluster: Cluster) -> None:
    """Refuse a recipe that wants GPUs which a cluster does not have.

    Raises:
        RequestError: says what it has.
    """
    train = recipe.train
    if not cluster.max_gpus and train.precision == "bf16":
        raise RequestError(
            f"recipe {recipe.name} works in bf16 on GPUs, and cluster {cluster.name} has none; "
            f"recipe ar_tiny trains on a CPU, and cluster.gpu=TYPE plans for GPUs elsewhere"
        )
    if cluster.max_gpus and (train.gpus or 0) > cluster.max_gpus:
        raise RequestError(
            f"train.gpus={train.gpus}, but cluster {cluster.name} has {cluster.max_gpus}; "
            f"leave train.gpus out, or set it and train.tensor_parallel to what it has"
        )


def make_plan(
    recipe: Recipe, cluster: Cluster, videos: int | None = None, shards: int | None = None
) -> Plan:
    """Resolve a recipe on a cluster. Pure: reads nothing but its arguments.

    Args:
        recipe, cluster: resolved ones.
        videos: how many there are; None before that is known.
        shards: how many an earlier submit of the run has pinned, if one has.

    Raises:
        RequestError: the cluster cannot run the recipe.
    """
    train, model = recipe.train, recipe.model_for_clips()
    check_gpus(recipe, cluster)
    generation = plan_generation(recipe, cluster, videos)
    if not recipe.trains:
        return _generating_plan(recipe, cluster, videos, generation)
    sizing = size(recipe, cluster)
    in_bf16 = sizing.in_bf16
    with_layout(recipe, sizing.layout)  # refuses batches that do not divide
    if videos is not None and not shards:
        # As many shards as tasks run at a time, if there are videos enough, so that none idles.
        wanted = -(-videos // recipe.data.videos_per_shard)
        shards = min(videos, max(wanted, cluster.parallel))
    kept = most_checkpoints(train) * checkpoint_bytes(recipe)
    # Ids are 16 bits wide, once in the shards and once joined.
    tokens = (videos or 0) * model.sequence_length * 2 * (2 if recipe.data.join else 1)
    return Plan(
        recipe=recipe.name,
        cluster=cluster.name,
        videos=videos,
        shards=shards,
        parallel=min(cluster.parallel, shards or cluster.parallel),
        latent_shape=model.latent_shape,
        sequence_length=model.sequence_length,
        parameters=model.num_parameters,
        trained=trained_of(train, model).of(model.num_parameters),
        gpu=cluster.gpu if cluster.max_gpus else None,
        ranks=sizing.layout.gpus,
        layout=sizing.layout,
        memory=sizing.memory,
        minimum=sizing.minimum,
        recommended=sizing.recommended,
        step_time=sizing.time,
        train_seconds=_train_seconds(recipe, sizing.time) if sizing.time else None,
        further=[(x.gpus, round(time.total, 3), str(x)) for x, time in sizing.further],
        in_bf16=(in_bf16[0], round(in_bf16[2].total, 3), str(in_bf16[1])) if in_bf16 else None,
        time_limit=cluster.time_of("train"),
        global_batch_size=train.global_batch_size,
        micro_batches=train.global_batch_size
        // (train.micro_batch_size * sizing.layout.data_parallel),
        max_steps=train.max_steps,
        host_bytes=host_bytes(recipe),
        disk_bytes=kept + tokens + (videos or 0) * recipe.kind.file_bytes(recipe.data, model),
        all_clips=recipe.data.clips == "all",
        generation=generation,
    )


def _generating_plan(
    recipe: Recipe, cluster: Cluster, inputs: int | None, generation: GenerationPlan
) -> Plan:
    """The plan of a run that only generates."""
    model = recipe.model_for_clips()
    frames = generation.frames or recipe.data.frames
    # At most a byte for two pixels: samples are compressed hardly visibly.
    a_sample = frames * recipe.data.height * recipe.data.width // 2
    return Plan(
        recipe=recipe.name,
        cluster=cluster.name,
        videos=inputs,
        shards=1,
        parallel=min(cluster.parallel, generation.tasks),
        latent_shape=model.latent_shape,
        sequence_length=model.sequence_length,
        parameters=model.num_parameters,
        gpu=cluster.gpu if cluster.max_gpus else None,
        ranks=1,
        disk_bytes=generation.clips * generation.samples * a_sample,
        generation=generation,
    )


def resolved(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with all that the plan has chosen.

    Raises:
        RequestError: its batches do not divide among the ranks, or the like.
    """
    if plan.layout:
        recipe = with_layout(recipe, plan.layout)
    chosen = {"tasks": plan.generation.tasks, "batch_size": plan.generation.batch_size}
    return replace(recipe, generate=replace(recipe.generate, **chosen))


def with_layout(recipe: Recipe, layout: Layout) -> Recipe:
    """The recipe with the layout that the plan has chosen.

    Raises:
        RequestError: its batches do not divide among the ranks, or the like.
    """
    chosen = {
        "gpus": layout.gpus,
        "tensor_parallel": layout.tensor_parallel,
        "context_parallel": layout.context_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "recompute": layout.recompute,
        "recompute_layers": layout.recompute_layers,
    }
    data = recipe.as_dict()
    # As it will be read again: what does not hold for these ranks is refused here, and not written.
    return validate(Recipe, {**data, "train": {**data["train"], **chosen}}, f"recipe {recipe.name}")
