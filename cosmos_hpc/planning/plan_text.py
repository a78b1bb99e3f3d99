"""A plan as text for a person."""

from __future__ import annotations

import math

from msgspec.structs import asdict

from cosmos_hpc.config.gpus import GPU_GIGABYTES
from cosmos_hpc.planning.memory import Layout
from cosmos_hpc.utils.progress import count_of, gigabytes

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from cosmos_hpc.planning.plans import Plan


def render(plan: Plan) -> str:
    """The plan as text for a person."""
    return "\n".join([f"{plan.recipe} on {plan.cluster}", *_stages(plan)])


def _stages(plan: Plan) -> list[str]:
    disk = f"  disk        {_disk(plan)}"
    if plan.layout is None:
        return [*_generation(plan), disk]
    return [*_training(plan, plan.layout), *_generation(plan), disk]


def _training(plan: Plan, layout: Layout) -> list[str]:
    clip = "x".join(map(str, plan.latent_shape))
    if plan.videos is None:
        shards = "shards follow from the videos; set data.input"
    else:
        videos, shards = count_of(plan.videos, "video"), count_of(plan.shards or 1, "shard")
        shards = f"{videos} in {shards}, {plan.parallel} at a time"
    where = count_of(plan.ranks, "rank" if plan.gpu is None else _gpu_name(plan.gpu))
    return [
        f"  preprocess  {shards}",
        f"              a clip is {clip} tokens, a sample {plan.sequence_length} inputs",
        f"  train       {count_of(plan.max_steps, 'step')} of a {plan.parameters / 1e6:,.0f} M "
        f"parameter model{_trained(plan)} on {where}",
        f"              {layout}, {plan.micro_batches} micro "
        f"batch{'es' * (plan.micro_batches > 1)} per step",
        *_memory(plan),
        *_time(plan),
    ]


def _generation(plan: Plan) -> list[str]:
    does = plan.generation
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
        if plan.layout is None
        else f"up to {count_of(does.clips, 'held-out clip')}"
    )
    share = f", in {does.tasks} array tasks" if does.tasks > 1 else ""
    lines = [
        f"  generate    {each}{clips}{share}",
        f"              {count_of(does.given_frames, 'given frame')}"
        f"{' (of a picture 1)' * (plan.layout is None and does.given_frames > 1)}, "
        f"{_new_frames(plan)}, {does.batch_size} at the same time",
    ]
    if does.memory:
        parts = asdict(does.memory).items()
        listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts)
        lines.append(f"              {does.memory.total / 1e9:.1f} GB on a GPU: {listed}")
    return lines


def _new_frames(plan: Plan) -> str:
    does = plan.generation
    if does.frames is None:
        return f"{does.new_tokens} new tokens a clip or step"
    return f"{does.frames - does.given_frames} new ones of {does.new_tokens} tokens a clip"


def _trained(plan: Plan) -> str:
    trained = f" ({plan.trained / 1e6:,.0f} M trained)"
    return trained if plan.trained != plan.parameters else ""


def _time(plan: Plan) -> list[str]:
    if plan.step_time is None or plan.train_seconds is None:
        return _no_time(plan)
    step = plan.step_time.total
    tokens = plan.global_batch_size * plan.sequence_length / step
    parts = ", ".join(
        f"{name.replace('_', ' ')} {seconds / step:.0%}"
        for name, seconds in asdict(plan.step_time).items()
        if seconds / step >= 0.005
    )
    lines = [
        f"  time        about {step:.2f} s per step, {tokens:,.0f} tokens/s: {parts}",
        f"              {count_of(plan.max_steps, 'step')} take about "
        f"{_duration(plan.train_seconds)}, without starting, checkpoints and waiting in a "
        f"queue",
    ]
    lines += [
        f"              {gpus} GPUs: {seconds:.2f} s per step, {step / seconds:.1f} times as "
        f"fast ({layout})"
        for gpus, seconds, layout in plan.further
    ]
    if plan.in_bf16:
        settings, seconds, layout = plan.in_bf16
        lines.append(
            f"              with {settings}: {seconds:.2f} s per step, "
            f"{step / seconds:.1f} times as fast ({layout})"
        )
    if plan.time_limit is not None:
        lines.append(f"  time limit  {_limit(plan, plan.time_limit)}")
    return lines


def _no_time(plan: Plan) -> list[str]:
    """Why the time is not known; nothing without GPUs, where nobody expects it."""
    if plan.gpu is None:
        return []
    why = "training in fp32 was not measured, only that in bf16"
    if not isinstance(plan.gpu, str):
        known = ", ".join(GPU_GIGABYTES)
        why = f"the speed of a GPU named by its memory is not known, that of {known} is"
    return [f"  time        not known, as {why}"]


def _limit(plan: Plan, limit: str) -> str:
    """What the training's jobs would need, beside what the profile gives them."""
    assert plan.train_seconds is not None
    hours, rest = divmod(proposed_minutes(plan.train_seconds), 60)
    days, hours = divmod(hours, 24)
    wanted = (f"{days}-" if days else "") + f"{hours:02}:{rest:02}:00"
    return (
        f"cluster.time.train={wanted} would do for one job; it is {limit}, and a training that "
        f"takes longer queues itself again and resumes"
    )


def _disk(plan: Plan) -> str:
    if plan.layout is None:
        return f"up to {gigabytes(plan.disk_bytes)} for samples"
    size = f"{gigabytes(plan.disk_bytes)} for tokens and checkpoints"
    return f"{size}, and more for further clips" if plan.all_clips else f"up to {size}"


def _memory(plan: Plan) -> list[str]:
    if plan.memory is None:
        return []
    parts = asdict(plan.memory).items()
    listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts if size)
    lines = [
        f"  memory      {plan.memory.total / 1e9:.1f} GB on each GPU: {listed}",
        f"              {gigabytes(plan.host_bytes)} of the memory of all nodes together while a "
        f"checkpoint is written",
        f"  GPUs        {_needed('at least', plan.minimum)}",
        f"              {_needed('recommended', plan.recommended)}",
    ]
    if plan.recommended:
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


def _gpu_name(gpu: str | float) -> str:
    return f"{gpu} GPU" if isinstance(gpu, str) else f"{gpu:g} GB GPU"


def _needed(word: str, layout: Layout | None) -> str:
    return f"{word} {layout.gpus} ({layout})" if layout else f"{word}: no number of them would do"
