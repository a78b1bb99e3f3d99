"""The sections of a recipe: its data, and its training."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from cosmos_hpc.data.tokens import TOKENIZERS, Compression, latent_shape
from cosmos_hpc.models.config import Fusion
from cosmos_hpc.utils.settings import PathText, Section

Recompute = Literal["none", "selective", "full"]

#: Writes the package's own small tokenizer, or text encoder, instead of fetching one.
SMALL_TOKENIZER = SMALL_TEXT_ENCODER = "small"


class Split(Section):
    """Weights of the parts of a data set; whole videos go to one part."""

    train: PositiveFloat = 8.0
    validation: NonNegativeFloat = 1.0
    test: NonNegativeFloat = 1.0
    seed: int = 0


class Data(Section):
    """Videos and how they become clips of ids.

    Attributes:
        input: folder of videos, searched recursively; a glob pattern; or a ``.jsonl`` or ``.txt``
            list of them.
        text_encoder: Hub repository or folder of a T5 model, whose encoder half turns prompts into
            embeddings, or ``small``; with task ``video2world`` only.
        prompts_per_shard: different prompts that one array task turns into embeddings, each of
            which loads the text encoder for them.
        tokenizer: Hub repository or folder with ``encoder.jit`` and ``decoder.jit``, or ``small``.
        compression: (time, height, width) factors of the tokenizer.
        frames, height, width: size of a clip, in frames and pixels.
        batch_size: clips that are written to the disk at a time, and that a GPU encodes at the same
            time; fewer need less of its memory.
        clips: ``first`` takes one clip of a video, ``all`` as many whole ones as it holds.
        start: seconds into a video at which its first clip begins.
        frame_rate: frames a second to which videos are resampled; None takes all their frames.
        stride: frames between the beginnings of two clips of a video; None: no gap, no overlap.
        decoders: processes that decode for one array task; None: its cores; 0: the task itself.
        videos_per_shard: videos that one array task prepares.
        probe: read the header of every video before the run, so that shards are balanced by their
            frames instead of the sizes of the files.
        join: finalize joins the shards into one data set; otherwise training reads the shards.
        short_videos: ``pad`` repeats the last frame of a video shorter than a clip, ``reject``
            lists it as failed.
        max_failed_fraction: share of the videos that may fail before the run does.
        split: how videos are divided.
    """

    input: PathText | None = None
    tokenizer: PathText
    compression: Compression = (8, 16, 16)
    frames: PositiveInt = 33
    height: PositiveInt = 640
    width: PositiveInt = 1024
    batch_size: PositiveInt = 8
    clips: Literal["first", "all"] = "first"
    start: NonNegativeFloat = 0.0
    frame_rate: PositiveFloat | None = None
    stride: PositiveInt | None = None
    decoders: NonNegativeInt | None = None
    videos_per_shard: PositiveInt = 250
    text_encoder: PathText | None = None
    prompts_per_shard: PositiveInt = 2000
    probe: bool = False
    join: bool = True
    short_videos: Literal["pad", "reject"] = "pad"
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    split: Split = Split()

    @model_validator(mode="after")
    def _divides(self) -> Data:
        published = {name: factors for factors, name in TOKENIZERS.items()}
        factors = published.get(self.tokenizer, self.compression)
        if factors != self.compression:
            raise ValueError(
                f"compression={list(self.compression)} is not that of {self.tokenizer}, "
                f"{list(factors)}; the tokenizer for it is {TOKENIZERS[self.compression]}"
            )
        latent_shape(self.frames, self.height, self.width, self.compression)
        if self.stride and self.clips == "first":
            raise ValueError(f"stride={self.stride} goes with clips=all")
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(T, H, W)`` of a clip's ids."""
        return latent_shape(self.frames, self.height, self.width, self.compression)

    @property
    def ids_per_clip(self) -> int:
        """Ids of a clip, T * H * W."""
        return math.prod(self.latent_shape)


class Train(Section):
    """Post-training.

    Attributes:
        max_steps: optimizer steps of the whole run.
        global_batch_size, micro_batch_size: clips a step, and a forward pass on one rank.
        gpus: ranks in all (processes where there is no GPU). None, here and in the next three: the
            plan chooses, from the memory that a step takes.
        tensor_parallel: ranks that share one copy of the model.
        sequence_parallel: they also share what lies between linear layers.
        recompute: what is computed again in the backward pass instead of kept: ``none``,
            ``selective`` (the feed-forward layers) or ``full`` (all but the input of each layer).
        recompute_layers: of how many layers, with ``full``; None: of all, or as the plan chooses.
        transformer_impl: ``local`` layers, those of ``transformer_engine``, or ``auto``: the latter
            where it is installed and there is a GPU.
        fusions: fused kernels on a GPU, of ``rotary``, ``norms`` and ``gradient_accumulation``;
            None: all with ``local`` layers, and none with Transformer Engine's.
        gradient_precision: of the sum of gradients over micro batches and ranks; ``bf16`` takes
            half of the memory and of the traffic, and rounds each addition.
        overlap_communication: reduce gradients during the backward pass, and gather weights during
            the forward pass, where there are copies of the model.
        learning_rate, warmup_steps: linear warm-up, then constant.
        weight_decay, clip_grad: AdamW's decay; largest norm of the gradient.
        save_every, keep_checkpoints: steps between checkpoints; how many of the best stay beside
            the last.
        validate_every, validation_batches: steps between validations; global batches of each.
        precision: ``bf16`` mixed precision or ``fp32``.
        init_from: NeMo checkpoint to start from, or a Hub repository; None for random weights.
        seed: of the weights and of the order of the clips.
    """

    max_steps: PositiveInt = 1000
    global_batch_size: PositiveInt = 8
    micro_batch_size: PositiveInt = 1
    gpus: PositiveInt | None = None
    tensor_parallel: PositiveInt | None = None
    sequence_parallel: bool | None = None
    recompute: Recompute | None = None
    recompute_layers: PositiveInt | None = None
    transformer_impl: Literal["auto", "local", "transformer_engine"] = "auto"
    fusions: list[Fusion] | None = None
    gradient_precision: Literal["bf16", "fp32"] = "fp32"
    overlap_communication: bool = False
    learning_rate: PositiveFloat = 5e-5
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.01
    clip_grad: NonNegativeFloat = 1.0
    save_every: PositiveInt = 100
    keep_checkpoints: PositiveInt = 2
    validate_every: PositiveInt = 100
    validation_batches: PositiveInt = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    init_from: PathText | None = None
    seed: int = 1234

    @model_validator(mode="after")
    def _divides(self) -> Train:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is not below max_steps={self.max_steps}"
            )
        if self.gpus and self.gpus % (self.tensor_parallel or 1):
            raise ValueError(
                f"tensor_parallel={self.tensor_parallel} does not divide gpus={self.gpus}"
            )
        if self.recompute_layers and self.recompute not in (None, "full"):
            raise ValueError(
                f"recompute_layers={self.recompute_layers} goes with recompute=full, and recompute "
                f"is {self.recompute}"
            )
        # Without a layout yet, there is at least one copy of the model.
        copies = self.data_parallel if self.gpus and self.tensor_parallel else 1
        step = self.micro_batch_size * copies
        if self.global_batch_size % step:
            above = -(-self.global_batch_size // step) * step
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size="
                f"{self.micro_batch_size} times {copies} data-parallel ranks; "
                f"the next is {above}"
            )
        return self

    @property
    def ranks(self) -> int:
        """Processes, once the plan has chosen a layout."""
        return self.gpus or 1

    @property
    def data_parallel(self) -> int:
        """Copies of the model that share a batch, once the plan has chosen a layout."""
        return self.ranks // (self.tensor_parallel or 1)
