"""What a recipe becomes on a cluster: tasks, ranks and sizes, and why."""

from __future__ import annotations

import math

from msgspec import Struct, field, to_builtins
from msgspec.structs import asdict, replace

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.gpus import GPU_GIGABYTES
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.sections import Train
from cosmos_hpc.errors import RequestError
from cosmos_hpc.planning.generation import GenerationPlan, plan_generation
from cosmos_hpc.planning.layouts import size, trained_of
from cosmos_hpc.planning.memory import Layout, Memory
from cosmos_hpc.planning.speed import StepTime
from cosmos_hpc.utils.html import table
from cosmos_hpc.utils.progress import count_of, gigabytes
from cosmos_hpc.utils.settings import validate

#: Bytes that a parameter takes in a checkpoint: its weight, and where it is trained its optimizer's
#: state: two Adam moments, and with mixed precision the weight in fp32 as well.
_WEIGHT_BYTES, _OPTIMIZER_BYTES = {"fp32": 4, "bf16": 2}, {"fp32": 8, "bf16": 12}


def checkpoint_bytes(recipe: Recipe) -> int:
    """Size of a checkpoint of a recipe's training; beside adapters it lacks the other weights."""
    train, model = recipe.train, recipe.model_for_clips()
    trained = trained_of(train, model)
    updated = trained.of(model.num_parameters)
    kept = updated if trained.frozen is None else model.num_parameters
    return _WEIGHT_BYTES[train.precision] * kept + _OPTIMIZER_BYTES[train.precision] * updated


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
        time_limit: of the training's jobs; None without.
        micro_batches: forward passes of a rank in one step.
        generation: what the generate stage does.
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
    trained: int = 0
    layout: Layout | None = None
    memory: Memory | None = None
    minimum: Layout | None = None
    recommended: Layout | None = None
    step_time: StepTime | None = None
    train_seconds: float | None = None
    further: list[tuple[int, float, str]] = field(default_factory=list)
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
        return "\n".join([f"{self.recipe} on {self.cluster}", *self._render_stages()])

    def _render_stages(self) -> list[str]:
        disk = f"  disk        {self._render_disk()}"
        if self.layout is None:
            return [*self._render_generation(), disk]
        return [*self._render_training(self.layout), *self._render_generation(), disk]

    def _render_training(self, layout: Layout) -> list[str]:
        clip = "x".join(map(str, self.latent_shape))
        if self.videos is None:
            shards = "shards follow from the videos; set data.input"
        else:
            videos, shards = count_of(self.videos, "video"), count_of(self.shards or 1, "shard")
            shards = f"{videos} in {shards}, {self.parallel} at a time"
        where = count_of(self.ranks, "rank" if self.gpu is None else _gpu_name(self.gpu))
        return [
            f"  preprocess  {shards}",
            f"              a clip is {clip} tokens, a sample {self.sequence_length} inputs",
            f"  train       {count_of(self.max_steps, 'step')} of a {self.parameters / 1e6:,.0f} M "
            f"parameter model{self._render_trained()} on {where}",
            f"              {layout}, {self.micro_batches} micro "
            f"batch{'es' * (self.micro_batches > 1)} per step",
            *self._render_memory(),
            *self._render_time(),
        ]

    def _render_generation(self) -> list[str]:
        does = self.generation
        if not does.given_frames or not does.tasks:
            reason = ""
            if does.memory and not does.fits:
                needs = f"{does.memory.total / 1e9:.0f} GB"
                reason = f": one sample takes {needs}, more than a GPU has to spare"
            return [f"  generate    nothing{reason}"]
        each = f"{does.samples} samples each of " if does.samples > 1 else ""
        # How many there are depends on the videos that can be read.
        clips = (
            count_of(does.clips, "input")
            if self.layout is None
            else f"up to {count_of(does.clips, 'held-out clip')}"
        )
        share = f", in {does.tasks} array tasks" if does.tasks > 1 else ""
        lines = [
            f"  generate    {each}{clips}{share}",
            f"              {count_of(does.given_frames, 'given frame')}"
            f"{' (of a picture 1)' * (self.layout is None and does.given_frames > 1)}, "
            f"{self._render_new_frames()}, {does.batch_size} at the same time",
        ]
        if does.memory:
            parts = asdict(does.memory).items()
            listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts)
            lines.append(f"              {does.memory.total / 1e9:.1f} GB on a GPU: {listed}")
        return lines

    def _render_new_frames(self) -> str:
        does = self.generation
        if does.frames is None:
            return f"{does.new_tokens} new tokens a clip or step"
        return f"{does.frames - does.given_frames} new ones of {does.new_tokens} tokens a clip"

    def _render_trained(self) -> str:
        trained = f" ({self.trained / 1e6:,.0f} M trained)"
        return trained if self.trained != self.parameters else ""

    def _render_time(self) -> list[str]:
        if self.step_time is None or self.train_seconds is None:
            return self._render_no_time()
        step = self.step_time.total
        tokens = self.global_batch_size * self.sequence_length / step
        parts = ", ".join(
            f"{name.replace('_', ' ')} {seconds / step:.0%}"
            for name, seconds in asdict(self.step_time).items()
            if seconds / step >= 0.005
        )
        lines = [
            f"  time        about {step:.2f} s per step, {tokens:,.0f} tokens/s: {parts}",
            f"              {count_of(self.max_steps, 'step')} take about "
            f"{_duration(self.train_seconds)}, without starting, checkpoints and waiting in a "
            f"queue",
        ]
        lines += [
            f"              {gpus} GPUs: {seconds:.2f} s per step, {step / seconds:.1f} times as "
            f"fast ({layout})"
            for gpus, seconds, layout in self.further
        ]
        if self.time_limit is not None:
            lines.append(f"  time limit  {self._render_limit(self.time_limit)}")
        return lines

    def _render_no_time(self) -> list[str]:
        """Why the time is not known; nothing without GPUs, where nobody expects it."""
        if self.gpu is None:
            return []
        why = "training in fp32 was not measured, only that in bf16"
        if not isinstance(self.gpu, str):
            known = ", ".join(GPU_GIGABYTES)
            why = f"the speed of a GPU named by its memory is not known, that of {known} is"
        return [f"  time        not known, as {why}"]

    def _render_limit(self, limit: str) -> str:
        """What the training's jobs would need, beside what the profile gives them."""
        assert self.train_seconds is not None
        hours, rest = divmod(proposed_minutes(self.train_seconds), 60)
        days, hours = divmod(hours, 24)
        wanted = (f"{days}-" if days else "") + f"{hours:02}:{rest:02}:00"
        return (
            f"cluster.time.train={wanted} would do for one job; it is {limit}, and a training that "
            f"takes longer queues itself again and resumes"
        )

    def _render_disk(self) -> str:
        if self.layout is None:
            return f"up to {gigabytes(self.disk_bytes)} for samples"
        size = f"{gigabytes(self.disk_bytes)} for tokens and checkpoints"
        return f"{size}, and more for further clips" if self.all_clips else f"up to {size}"

    def _render_memory(self) -> list[str]:
        if self.memory is None:
            return []
        parts = asdict(self.memory).items()
        listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts if size)
        lines = [
            f"  memory      {self.memory.total / 1e9:.1f} GB on each GPU: {listed}",
            f"  GPUs        {_needed('at least', self.minimum)}",
            f"              {_needed('recommended', self.recommended)}",
        ]
        if self.recommended:
            lines[-1] += "; it fits without recomputation and leaves a quarter of the memory free"
        return lines


def proposed_minutes(train_seconds: float) -> int:
    """Minutes of a job that trains for this long, rounded up to half hours.

    A quarter more than the steps take, for checkpoints and slower nodes, and a quarter of an hour
    to start.
    """
    return 30 * math.ceil((1.25 * train_seconds / 60 + 15) / 30)


def _duration(seconds: float) -> str:
    """Hours and minutes, or minutes."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _train_seconds(recipe: Recipe, step: StepTime) -> float:
    """All steps and validations; a validation's forward pass is a third of the step's."""
    train = recipe.train
    steps = float(train.max_steps)
    if recipe.data.split.validation:
        steps += train.max_steps // train.validate_every * train.validation_batches / 3
    return steps * step.total


def _gpu_name(gpu: str | float) -> str:
    return f"{gpu} GPU" if isinstance(gpu, str) else f"{gpu:g} GB GPU"


def _needed(word: str, layout: Layout | None) -> str:
    return f"{word} {layout.gpus} ({layout})" if layout else f"{word}: no number of them would do"


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
        time_limit=cluster.time_of("train"),
        global_batch_size=train.global_batch_size,
        micro_batches=train.global_batch_size
        // (train.micro_batch_size * sizing.layout.data_parallel),
        max_steps=train.max_steps,
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
