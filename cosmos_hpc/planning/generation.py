"""What generating samples takes: how many there are, of how many tokens, and memory of a GPU."""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import asdict

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.tokens import TEXT_POSITIONS
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.planning.layouts import POSSIBLE
from cosmos_hpc.utils.progress import count_of

#: Samples at the same time, where that many are wanted and fit: reading the weights once for all
#: of them, a GPU then draws several times as many tokens a second as for one.
USUAL_BATCH = 8

#: Positions of a batch that a prompt goes through the layers at a time.
_AT_A_TIME = 8192
#: Bytes of the tokenizer's weights, and of its decoder's features for each pixel of a clip. From
#: what an H100 reported; see benchmarks/README.md.
_TOKENIZER_WEIGHTS, _TOKENIZER_BYTES_PER_PIXEL = 400_000_000, 100


class GenerationMemory(Struct, frozen=True):
    """Bytes on one GPU when they are most.

    Attributes:
        weights: of the decoder.
        cache: keys and values of every position of a clip and of the text, for each sample.
        workspace: what a layer computes with on the way, and logits in float32.
        tokenizer: its weights, and what decoding a clip needs beyond cache and workspace, which are
            free then.
    """

    weights: int
    cache: int
    workspace: int
    tokenizer: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(asdict(self).values())


class GenerationPlan(Struct, frozen=True):
    """What the generate stage does.

    Attributes:
        clips: held-out clips or inputs that there are at most.
        samples: of each.
        tasks: array tasks that share them; 0 where none are generated.
        given_frames, frames: that a sample begins with, and has in all; None where time says.
        new_tokens: that are drawn for a clip of a sample.
        batch_size: samples at the same time.
        memory: on one GPU; None without GPUs.
        fits: whether a GPU has so much.
    """

    clips: int
    samples: int
    tasks: int
    given_frames: int
    frames: int | None
    new_tokens: int
    batch_size: int
    memory: GenerationMemory | None
    fits: bool = True


def generation_memory(
    model: ModelConfig, batch: int, precision: str, pixels: int
) -> GenerationMemory:
    """Memory of generating ``batch`` samples at the same time.

    Args:
        model: the architecture.
        batch: samples.
        precision: ``bf16`` or ``fp32``.
        pixels: of a clip, frames times height times width.
    """
    width = 2 if precision == "bf16" else 4
    key_value = 2 * model.num_layers * model.num_query_groups * model.kv_channels
    text = 0
    if model.context_width:
        text = 1 if model.action_width else TEXT_POSITIONS
    positions = model.special_ids_first + math.prod(model.latent_shape) + text
    query = model.num_attention_heads * model.kv_channels
    a_position = 4 * model.hidden_size + 3 * query + 3 * model.ffn_hidden_size
    at_a_time = min(_AT_A_TIME, batch * positions)
    # Logits of one position of each sample, scaled, sorted and added up, in float32 and int64.
    logits = batch * model.output_vocab_size * 4 * 8
    cache = width * key_value * positions * batch
    workspace = width * a_position * at_a_time + logits
    decoding = _TOKENIZER_BYTES_PER_PIXEL * pixels
    return GenerationMemory(
        weights=width * model.num_parameters,
        cache=cache,
        workspace=workspace,
        tokenizer=_TOKENIZER_WEIGHTS + max(0, decoding - cache - workspace),
    )


def plan_generation(recipe: Recipe, cluster: Cluster, inputs: int | None) -> GenerationPlan:
    """What the generate stage of a recipe does on a cluster.

    Args:
        recipe, cluster: resolved.
        inputs: that there are to generate from, in a run without a training.

    Raises:
        RequestError: not even one sample fits on a GPU, or not as many as are asked for; and the
            recipe sets that many, or is for generating alone.
    """
    generate, data = recipe.generate, recipe.data
    clips = generate.clips if recipe.trains else inputs or 1
    samples = clips * generate.samples
    given = recipe.given_frames
    latent = 1 + (given - 1) // data.compression[0] if given else 0
    new = data.ids_per_clip // data.latent_shape[0] * (data.latent_shape[0] - latent)
    frames = None if generate.seconds or recipe.kind.by_steps else generate.frames or data.frames
    batch, memory = _batch(recipe, cluster, samples)
    fits = memory is None or memory.total <= POSSIBLE * cluster.gpu_bytes
    if memory and not fits and (generate.batch_size or not recipe.trains):
        raise RequestError(
            f"recipe {recipe.name} needs {memory.total / 1e9:.0f} GB on a GPU to generate "
            f"{count_of(batch, 'sample')} at the same time, and they have "
            f"{cluster.gpu_bytes / 1e9:.0f} GB, of which {POSSIBLE:.0%} can be used"
            + ("; set a smaller generate.batch_size" if batch > 1 else "")
        )
    tasks = max(1, min(cluster.parallel, -(-samples // batch))) if fits else 0
    return GenerationPlan(
        clips=clips,
        samples=generate.samples,
        tasks=tasks if generate.tasks is None else generate.tasks,
        given_frames=given,
        frames=frames,
        new_tokens=data.ids_per_clip if recipe.kind.by_steps else new,
        batch_size=batch,
        memory=memory,
        fits=fits,
    )


def _batch(recipe: Recipe, cluster: Cluster, samples: int) -> tuple[int, GenerationMemory | None]:
    """Samples at the same time, and the memory that they take on a GPU; 1 where none fits."""
    model, data, wanted = recipe.model_for_clips(), recipe.data, recipe.generate.batch_size
    most = min(samples, wanted or USUAL_BATCH)
    if not cluster.max_gpus:
        return most, None
    pixels = data.frames * data.height * data.width

    def memory(batch: int) -> GenerationMemory:
        return generation_memory(model, batch, recipe.train.precision, pixels)

    room = POSSIBLE * cluster.gpu_bytes
    fitting = [batch for batch in range(1, most + 1) if memory(batch).total <= room]
    batch = most if wanted else max(fitting, default=1)
    return batch, memory(batch)
