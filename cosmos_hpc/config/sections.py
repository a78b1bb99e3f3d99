"""The sections of a recipe: its data, and its training."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta, field

from cosmos_hpc.data.tokens import TOKENIZERS, Compression, latent_shape
from cosmos_hpc.models.adapters import Target, targets_of
from cosmos_hpc.models.config import Architecture, Fusion
from cosmos_hpc.models.parts import layers_of, part
from cosmos_hpc.utils.annotations import (
    Checked,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from cosmos_hpc.utils.settings import PathText, Section

Recompute = Literal["none", "selective", "full"]

#: Writes the package's own small tokenizer, or text encoder, instead of fetching one.
SMALL_TOKENIZER = SMALL_TEXT_ENCODER = "small"


class Split(Section, frozen=True, kw_only=True):
    """Weights of the parts of a data set; each video is in one part only.

    Attributes:
        train, validation, test: how much of the videos each part gets, in proportion to the others.
        seed: of the draw.
    """

    train: PositiveFloat = 8.0
    validation: NonNegativeFloat = 1.0
    test: NonNegativeFloat = 1.0
    seed: int = 0


class Data(Section, frozen=True, kw_only=True):
    """Videos and how they become clips of tokens.

    Attributes:
        input: folder of videos, searched recursively; a glob pattern; a ``.jsonl`` or ``.txt``
            list of them; a LeRobot data set, a folder or ``hf://datasets/OWNER/NAME[@REVISION]``;
            or a folder in the Bridge layout.
        camera: of a LeRobot data set, where it has several.
        episodes: of a LeRobot data set, numbers and ranges such as ``0-9,12``; None: all.
        action: feature of a LeRobot data set that holds the actions; with task ``action`` only.
        normalize_action: ``mean_std`` or ``min_max`` make actions alike by the statistics of the
            LeRobot data set, ``none`` leaves them as they are.
        text_encoder: Hub repository or folder of a T5 model, whose encoder half turns prompts into
            embeddings, or ``small``; with task ``video2world`` only.
        prompts_per_shard: different prompts that one array task turns into embeddings, each of
            which loads the text encoder for them.
        tokenizer: Hub repository or folder with ``encoder.jit`` and ``decoder.jit``, or ``small``.
        compression: (time, height, width) factors of the tokenizer.
        frames: length of a clip.
        height, width: size of its frames, in pixels.
        batch_size: clips that are written to the disk at a time, and that a GPU encodes at the same
            time; fewer need less of its memory.
        clips: ``first`` takes one clip of a video, ``all`` as many complete ones as it holds.
        start: seconds into a video at which its first clip begins.
        frame_rate: frames per second to which videos, and the actions of their frames, are
            resampled; None takes all their frames.
        stride: frames between the beginnings of two clips of a video; None: no gap, no overlap.
        decoders: processes that decode for one array task; None: its cores; 0: the task itself.
        videos_per_shard: videos that one array task prepares.
        probe: read the header of every video before the run, so that shards are balanced by their
            frames instead of the sizes of the files.
        join: finalize joins the shards into one data set; otherwise training reads the shards.
        short_videos: ``pad`` repeats the last frame of a video shorter than a clip, ``reject``
            lists it as failed.
        same_files: which files of a folder or list are one video, of which no two names are taken:
            ``path``, those to which links and ``..`` lead; ``content``, copies and hard links as
            well, for which files of one size are read before the run.
        max_failed_fraction: share of the videos that may fail before the run does.
        split: how videos are divided.
    """

    input: PathText | None = None
    camera: str | None = None
    episodes: str | None = None
    action: str = "action"
    normalize_action: Literal["none", "mean_std", "min_max"] = "none"
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
    same_files: Literal["path", "content"] = "path"
    max_failed_fraction: Annotated[float, Meta(ge=0, le=1)] = 0.05
    split: Split = Split()

    def _fits_together(self) -> None:
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

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(T, H, W)`` of a clip's tokens."""
        return latent_shape(self.frames, self.height, self.width, self.compression)

    @property
    def ids_per_clip(self) -> int:
        """Ids of a clip, T * H * W."""
        return math.prod(self.latent_shape)


class Lora(Section, frozen=True, kw_only=True):
    """Low-rank adapters beside frozen weights, which alone are trained (Hu et al., 2021).

    Attributes:
        rank: inner width of an adapter.
        alpha: an adapter's output counts ``alpha / rank`` times.
        targets: linear layers that get an adapter, by Megatron's names; None: all of the model.
        dropout: share of an adapter's inputs that is dropped in a training step.
    """

    rank: PositiveInt = 32
    alpha: PositiveFloat = 32.0
    targets: Annotated[list[Target], Meta(min_length=1)] | None = None
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class Wandb(Section, frozen=True, kw_only=True):
    """Where Weights & Biases shows a run.

    Attributes:
        project: made where there is none.
        entity: user or team; None: the account's own.
        tags: that the run gets there.
    """

    project: Annotated[str, Meta(min_length=1)] = "cosmos-hpc"
    entity: Annotated[str, Meta(min_length=1)] | None = None
    tags: list[str] = field(default_factory=list)


class Train(Section, frozen=True, kw_only=True):
    """Post-training.

    Attributes:
        max_steps: optimizer steps of the whole run.
        global_batch_size: clips of an optimizer step, on all ranks.
        micro_batch_size: clips of a forward pass on one rank.
        gpus: ranks in all (processes where there is no GPU). None: the plan chooses, from the
            memory that a step takes.
        tensor_parallel: ranks that share one copy of the model; None: the plan chooses.
        context_parallel: copies of the model that share the sequence of a sample, each a part of
            it; with ``local`` layers. None: the plan chooses.
        sequence_parallel: the ranks that share a copy also share what lies between linear layers;
            None: the plan chooses.
        recompute: what is computed again in the backward pass instead of kept: ``none``,
            ``selective`` (the feed-forward layers) or ``full`` (all but the input of each layer);
            None: the plan chooses.
        recompute_layers: layers to which ``recompute=full`` applies; None: all, or as the plan
            chooses.
        transformer_impl: ``local`` layers, those of ``transformer_engine``, or ``auto``: the latter
            where it is installed and there is a GPU.
        fusions: fused kernels on a GPU, of ``rotary``, ``norms``, ``swiglu``,
            ``gradient_accumulation``, ``gradient_norm``, ``adam`` and ``loss``; None: all with
            ``local`` layers, and only ``loss`` with Transformer Engine's.
        gradient_precision: of the sum of gradients over micro batches and ranks; ``bf16`` takes
            half of the memory and of the traffic, and rounds each addition.
        overlap_communication: reduce gradients during the backward pass, and gather weights during
            the forward pass, where there are copies of the model.
        learning_rate: AdamW's learning rate, after the warm-up and before ``schedule`` lowers it.
        warmup_steps: steps in which the learning rate rises to ``learning_rate``; None: a tenth of
            ``max_steps``, at most 100, where ``init_from`` is set, else none.
        schedule: the learning rate after the warm-up: ``constant``, or along a ``cosine`` or a
            ``linear`` line down to ``min_learning_rate``.
        min_learning_rate: learning rate with which ``cosine`` and ``linear`` end.
        weight_decay: AdamW's weight decay.
        clip_grad: largest norm of the gradient; longer ones are scaled down to it.
        save_every: steps between checkpoints.
        keep_checkpoints: how many of the best checkpoints stay beside the last.
        validate_every: steps between validations.
        validation_batches: global batches of a validation.
        validate_first: validate before the first step as well.
        condition_frames: frames at the beginning of a clip that are given, not predicted: their ids
            carry no loss.
        freeze: parts that keep their weights: ``embedding``, ``output_layer``, ``layers.3`` or
            ``layers.0-7``, counted from 0, both ends included.
        lora: train adapters instead of the weights; None: the weights themselves.
        precision: ``bf16`` mixed precision or ``fp32``.
        init_from: NeMo checkpoint to start from, or a Hub repository; None for random weights.
        seed: of the weights and of the order of the clips.
        wandb: project and the like, where Weights & Biases is used.
        tensorboard: write TensorBoard's files as well, to ``train/tensorboard``.
    """

    max_steps: PositiveInt = 1000
    global_batch_size: PositiveInt = 8
    micro_batch_size: PositiveInt = 1
    gpus: PositiveInt | None = None
    tensor_parallel: PositiveInt | None = None
    context_parallel: PositiveInt | None = None
    sequence_parallel: bool | None = None
    recompute: Recompute | None = None
    recompute_layers: PositiveInt | None = None
    transformer_impl: Literal["auto", "local", "transformer_engine"] = "auto"
    fusions: list[Fusion] | None = None
    gradient_precision: Literal["bf16", "fp32"] = "fp32"
    overlap_communication: bool = False
    learning_rate: PositiveFloat = 5e-5
    warmup_steps: NonNegativeInt | None = None
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    min_learning_rate: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.01
    clip_grad: NonNegativeFloat = 1.0
    save_every: PositiveInt = 100
    keep_checkpoints: PositiveInt = 2
    validate_every: PositiveInt = 100
    validation_batches: PositiveInt = 1
    validate_first: bool = True
    condition_frames: NonNegativeInt = 0
    freeze: list[Annotated[str, Checked(part)]] = field(default_factory=list)
    lora: Lora | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    init_from: PathText | None = None
    seed: int = 1234
    wandb: Wandb = Wandb()
    tensorboard: bool = False

    def _fits_together(self) -> None:
        if self.warmup_steps and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is not below max_steps={self.max_steps}"
            )
        if self.gpus and self.gpus % self.ranks_per_sample:
            factors = [f"tensor_parallel={self.tensor_parallel}"] if self.tensor_parallel else []
            factors += [f"context_parallel={self.context_parallel}"] * bool(self.context_parallel)
            raise ValueError(f"{' times '.join(factors)} does not divide gpus={self.gpus}")
        if (self.context_parallel or 1) > 1 and self.transformer_impl == "transformer_engine":
            raise ValueError(
                f"context_parallel={self.context_parallel} needs local layers, and "
                f"transformer_impl is transformer_engine"
            )
        if self.recompute_layers and self.recompute not in (None, "full"):
            raise ValueError(
                f"recompute_layers={self.recompute_layers} goes with recompute=full, and recompute "
                f"is {self.recompute}"
            )
        # Without a layout yet, there is at least one sample at a time.
        complete = self.gpus and self.tensor_parallel and self.context_parallel
        copies = self.data_parallel if complete else 1
        step = self.micro_batch_size * copies
        if self.global_batch_size % step:
            above = -(-self.global_batch_size // step) * step
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size="
                f"{self.micro_batch_size} times {copies} data-parallel ranks; "
                f"the next is {above}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate={self.min_learning_rate} is above learning_rate="
                f"{self.learning_rate}"
            )
        self._check_adapters()

    def _check_adapters(self) -> None:
        if self.lora is None:
            return
        if not self.init_from:
            raise ValueError("lora needs init_from: adapters are trained beside existing weights")
        if self.freeze:
            raise ValueError("freeze does not go with lora, which freezes all weights")
        if self.lora.rank % (self.tensor_parallel or 1):
            raise ValueError(
                f"tensor_parallel={self.tensor_parallel} does not divide lora.rank={self.lora.rank}"
            )

    def check(self, model: Architecture, data: Data) -> None:
        """Refuse settings that do not fit a model or its clips.

        Raises:
            ValueError: says which.
        """
        beyond = [n for n in layers_of(self.freeze) if n >= model.num_layers]
        if beyond:
            raise ValueError(
                f"train.freeze names layer {beyond[0]}, and the model has layers 0 to "
                f"{model.num_layers - 1}"
            )
        if self.lora:
            there = targets_of(model)
            wrong = [name for name in self.lora.targets or () if name not in there]
            if wrong:
                raise ValueError(
                    f"train.lora.targets: this model has no {wrong[0]}; it has {', '.join(there)}"
                )
        if self.condition_frames >= data.frames and self.condition_frames:
            raise ValueError(
                f"train.condition_frames={self.condition_frames} leaves none of data.frames="
                f"{data.frames} to predict"
            )
        self.given_ids(data)

    def given_ids(self, data: Data) -> int:
        """Ids at the beginning of a clip that are given, from ``condition_frames``.

        Raises:
            ValueError: a latent frame would be given in part.
        """
        if not self.condition_frames:
            return 0
        try:
            shape = latent_shape(self.condition_frames, data.height, data.width, data.compression)
        except ValueError as e:
            raise ValueError(f"train.condition_{e}") from None
        return math.prod(shape)

    @property
    def warmup(self) -> int:
        """Steps of warm-up, chosen where the recipe leaves them open."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(100, self.max_steps // 10) if self.init_from else 0

    @property
    def ranks(self) -> int:
        """Processes, once the plan has chosen a layout."""
        return self.gpus or 1

    @property
    def ranks_per_sample(self) -> int:
        """Processes that share a sample, once the plan has chosen a layout."""
        return (self.tensor_parallel or 1) * (self.context_parallel or 1)

    @property
    def data_parallel(self) -> int:
        """Parts into which a batch is divided, once the plan has chosen a layout."""
        return self.ranks // self.ranks_per_sample
