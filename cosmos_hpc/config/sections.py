"""The sections of a recipe: its data, and its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, field

from cosmos_hpc.data.tokens import TOKENIZERS, Compression, latent_shape
from cosmos_hpc.models.adapters import Target, targets_of
from cosmos_hpc.models.config import FUSIONS, Architecture, Fusion
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
        seed: seed of the draw that decides which part a video is in.
    """

    train: PositiveFloat = 8.0
    validation: NonNegativeFloat = 1.0
    test: NonNegativeFloat = 1.0
    seed: int = 0


class Data(Section, frozen=True, kw_only=True):
    """Videos and how they become clips of tokens.

    Attributes:
        input: videos: a folder, searched recursively; a glob pattern; a list that ends in
            ``.jsonl``, ``.csv``, ``.parquet`` or ``.txt``; WebDataset tars; a LeRobot data set, as
            a folder or ``hf://datasets/OWNER/NAME[@REVISION]``; or a folder in the Bridge layout.
        camera: which camera's videos of a LeRobot data set to take, where it has several.
        episodes: which episodes of a LeRobot data set to take, as numbers and ranges such as
            ``0-9,12``; None: all.
        action: feature of a LeRobot data set that holds the actions; with task ``action`` only.
        normalize_action: how actions of a LeRobot data set are brought to one scale, by its
            statistics, ``mean_std`` or ``min_max``; ``none`` leaves them as they are.
        text_encoder: what turns prompts into embeddings, with task ``video2world`` only: a T5
            model, as Hub repository or folder, or ``small``, the package's own.
        prompts_per_shard: different prompts that one array task turns into embeddings; each such
            task loads the text encoder.
        tokenizer: what turns videos into tokens: a Hub repository or folder with ``encoder.jit``
            and ``decoder.jit``, or ``small``, the package's own.
        compression: how many frames, rows and columns of pixels the tokenizer makes one token of.
        frames: length of a clip.
        height, width: size of a clip's frames, in pixels.
        batch_size: clips that a GPU encodes at the same time, and that are written to the disk
            together; fewer need less of the GPU's memory.
        clips: ``first`` takes one clip of a video, ``all`` as many complete ones as it holds.
        start: seconds into a video at which its first clip begins.
        frame_rate: frames a second to which videos, and the actions of their frames, are resampled;
            None takes all their frames.
        stride: frames from the beginning of one clip of a video to that of the next; None: each
            clip begins where the one before ends.
        decoders: processes that decode videos for one array task; None: as many as it has cores; 0:
            the task decodes by itself.
        videos_per_shard: videos that one array task prepares, at most.
        probe: read the header of every video before the run, so that shards are balanced by numbers
            of frames instead of sizes of files.
        join: have the stage ``finalize`` join the shards into one data set; false: training reads
            the shards as they are.
        short_videos: what becomes of a video shorter than a clip: ``pad`` repeats its last frame,
            ``reject`` lists it as failed.
        same_files: when two names in a folder or list are one video, which is taken once: ``path``,
            where links or ``..`` lead to the same file; ``content``, also where one is a copy or a
            hard link of the other, for which files of equal size are read before the run.
        max_failed_fraction: share of the videos that may fail; where more do, the run fails.
        split: how videos are divided between training, validation and test.
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
        alpha: an adapter's output is multiplied by ``alpha / rank``.
        targets: linear layers that get an adapter, by Megatron's names; None: all linear layers of
            the model.
        dropout: share of an adapter's inputs that is dropped in a training step.
    """

    rank: PositiveInt = 32
    alpha: PositiveFloat = 32.0
    targets: Annotated[list[Target], Meta(min_length=1)] | None = None
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class Wandb(Section, frozen=True, kw_only=True):
    """Where Weights & Biases shows a run.

    Attributes:
        project: project that shows the run; it is made where there is none.
        entity: user or team that the project is of; None: the account's own.
        tags: tags that the run gets there.
    """

    project: Annotated[str, Meta(min_length=1)] = "cosmos-hpc"
    entity: Annotated[str, Meta(min_length=1)] | None = None
    tags: list[str] = field(default_factory=list)


class Train(Section, frozen=True, kw_only=True):
    """Post-training.

    Attributes:
        max_steps: optimizer steps of the whole run.
        global_batch_size: clips of an optimizer step, on all ranks together.
        micro_batch_size: clips that a rank computes in one forward pass; a step takes as many
            passes as make up ``global_batch_size``.
        gpus: GPUs of the training in all, each with a process of its own (a rank); on a machine
            without GPUs, the number of processes. None: the plan chooses, by memory and speed.
        tensor_parallel: ranks that hold one copy of the model together, each a part of every layer;
            None: the plan chooses.
        context_parallel: copies of the model that compute one sample together, each a part of its
            sequence; needs ``local`` layers. None: the plan chooses.
        sequence_parallel: the ranks of ``tensor_parallel`` also divide what lies between linear
            layers, which saves memory; None: the plan chooses.
        recompute: what is computed again in the backward pass instead of kept in memory: ``none``,
            ``selective`` (the feed-forward layers) or ``full`` (all but the input of each layer);
            None: the plan chooses.
        recompute_layers: number of layers to which ``recompute=full`` applies; None: all, or as the
            plan chooses.
        transformer_impl: what computes the layers: ``local`` ones, those of ``transformer_engine``,
            or ``auto``, which takes ``local`` ones: with their fused kernels they are faster.
        fusions: which of these are computed by fused kernels on a GPU; None: all with ``local``
            layers, and only ``loss`` with Transformer Engine's.
        gradient_precision: precision in which gradients are summed over micro batches and ranks;
            ``bf16`` takes half of the memory and of the traffic, and rounds each addition.
        moment_precision: precision in which AdamW keeps its two moments; ``bf16`` takes 6 bytes per
            parameter for the optimizer instead of 10, and rounds the moments at each step.
        overlap_communication: exchange gradients while the backward pass computes, and weights
            while the forward pass does, where there are several copies of the model.
        learning_rate: AdamW's learning rate, after the warm-up and before ``schedule`` lowers it.
        warmup_steps: steps in which the learning rate rises to ``learning_rate``; None: a tenth of
            ``max_steps``, at most 100, where ``init_from`` is set, and none elsewhere.
        schedule: what the learning rate does after the warm-up: it stays ``constant``, or falls
            along a ``cosine`` or a ``linear`` line to ``min_learning_rate``.
        min_learning_rate: learning rate that ``cosine`` and ``linear`` end with.
        weight_decay: AdamW's weight decay.
        clip_grad: largest norm of the gradient; longer ones are scaled down to it.
        save_every: steps between checkpoints.
        keep_checkpoints: how many checkpoints are kept beside the last one: those with the lowest
            training loss.
        validate_every: steps between validations.
        validation_batches: batches, of ``global_batch_size`` clips each, that a validation takes.
        validate_first: validate before the first step as well.
        condition_frames: frames at the beginning of a clip that are given, not predicted: their
            tokens carry no loss.
        freeze: parts of the model whose weights are not trained: ``embedding``, ``output_layer``,
            ``layers.3`` or ``layers.0-7``, counted from 0, both ends included.
        lora: adapters that are trained in place of the weights; None: the weights themselves are
            trained.
        precision: what the training computes in: ``bf16`` mixed precision or ``fp32``.
        init_from: weights to start from: a NeMo checkpoint, published weights, or a Hub repository;
            None: random ones.
        seed: seed of random weights and of the order of the clips.
        wandb: where Weights & Biases shows the run, if there is a key for it.
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
    moment_precision: Literal["bf16", "fp32"] = "fp32"
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
        self._check_moments()
        self._check_adapters()

    def _check_moments(self) -> None:
        if self.moment_precision == "fp32":
            return
        if self.precision == "fp32":
            raise ValueError("moment_precision=bf16 needs precision=bf16")
        if self.lora:
            raise ValueError("moment_precision=bf16 does not go with lora: adapters are small")
        if not self.fuses_adam and self.transformer_impl != "transformer_engine":
            raise ValueError(
                "moment_precision=bf16 needs adam among the fusions, or "
                "transformer_impl=transformer_engine"
            )

    @property
    def fused(self) -> Sequence[Fusion]:
        """What fused kernels compute on a GPU; the default depends on ``transformer_impl``."""
        if self.fusions is not None:
            return self.fusions
        return ("loss",) if self.transformer_impl == "transformer_engine" else FUSIONS

    @property
    def fuses_adam(self) -> bool:
        """Whether AdamW updates weights in one pass; not those of adapters, many and small."""
        return "adam" in self.fused and self.lora is None

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
