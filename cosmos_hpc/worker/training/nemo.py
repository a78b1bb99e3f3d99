"""A recipe as NeMo's model, optimizer and trainer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from msgspec.structs import asdict
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning.io import TrainerContext
from torch import Tensor

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.sections import Train
from cosmos_hpc.models.checkpoints.published import load_weights
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.context_parallel import own_part
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.fusions import choose_fusions, fuse
from cosmos_hpc.models.megatron import megatron_settings
from cosmos_hpc.models.parts import belongs, layers_of
from cosmos_hpc.utils.progress import say
from cosmos_hpc.worker.training import patches
from cosmos_hpc.worker.training.accuracy import LossAndAccuracy
from cosmos_hpc.worker.training.adam import AdamInOneKernel, moment_settings, use_fused_adam
from cosmos_hpc.worker.training.checkpoints import ValidationFirst, ValidationLast
from cosmos_hpc.worker.training.data import ClipData
from cosmos_hpc.worker.training.lora import make_adapters
from cosmos_hpc.worker.training.metrics import StopAtNaN
from cosmos_hpc.worker.training.optimizer_state import keep_by_parameter
from cosmos_hpc.worker.training.schedule import ScheduleModule


def _data_step(batches: Iterator[Any]) -> dict[str, Tensor]:
    batch = next(batches)
    batch = batch[0] if isinstance(batch, tuple) else batch
    return {key: value.cuda(non_blocking=True) for key, value in batch.items()}


def _forward_step(model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    # NeMo's own insists on a dense mask where there is no Transformer Engine; the layers know
    # that they are causal. Positions come from the rotary table, not from position ids.
    # Megatron's own cut of a batch for context parallelism is another than the layers'.
    ranks = parallel_state.get_context_parallel_group()
    condition = {name: batch[name] for name in ("context", "action") if name in batch}
    losses = model(
        input_ids=own_part(batch["tokens"], ranks, 1),
        position_ids=None,
        attention_mask=None,
        labels=own_part(batch["labels"], ranks, 1),
        **condition,
    )
    likeliest = _decoder_of(model).likeliest
    assert likeliest is not None
    return losses, likeliest


def _decoder_of(model: Any) -> CosmosDecoder:
    """What the layers of NeMo and Megatron around it hold."""
    while not isinstance(model, CosmosDecoder):
        model = model.module
    return model


@dataclass
class CosmosConfig(llm.GPTConfig):
    """NeMo's configuration of a Cosmos decoder, with the fields of :class:`ModelConfig`."""

    latent_shape: tuple[int, int, int] = (1, 1, 1)
    output_vocab_size: int = 0
    yarn_scale: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_original_latent_shape: tuple[int, int, int] | None = None
    context_width: int | None = None
    action_width: int | None = None
    pad_to_multiple_of: int | None = None

    def model(self) -> ModelConfig:
        """The architecture alone."""
        return ModelConfig(**{name: getattr(self, name) for name in ModelConfig.__struct_fields__})

    def configure_model(
        self,
        tokenizer: Any,
        pre_process: Any = None,
        post_process: Any = None,
        vp_stage: Any = None,
    ) -> CosmosDecoder:
        """Build the decoder on Megatron-Core."""
        return CosmosDecoder(
            self,
            self.model(),
            pre_process=True if pre_process is None else pre_process,
            post_process=True if post_process is None else post_process,
            vp_stage=vp_stage,
        )


class CosmosModel(llm.GPTModel):
    """NeMo's model around the decoder.

    Attributes:
        initial_weights: checkpoint whose weights a new training starts from; None: random ones.
        frozen: parts that are not trained, as :mod:`cosmos_hpc.models.parts` names them.
        frozen_below: whether layers may get an input of which no gradient is wanted.
    """

    initial_weights: Path | None = None
    frozen: Sequence[str] = ()
    frozen_below: bool = False
    #: NeMo's; without values here, which would hide those that are modules.
    _training_loss_reduction: LossAndAccuracy | None
    _validation_loss_reduction: LossAndAccuracy | None

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build the decoder, once, and load the weights to start from."""
        built = hasattr(self, "module")
        if not torch.cuda.is_available():
            # NeMo does so on GPUs only; sequence parallelism asks for these states anywhere.
            model_parallel_cuda_manual_seed(torch.initial_seed())
        super().configure_model(vp_stage)
        if self.initial_weights and not built:
            weights = open_weights(self.initial_weights)
            new = load_weights(self.module, self.config.model(), weights)
            say(f"starting from {weights.where}{', but for ' + ', '.join(new) if new else ''}")
        if not built:
            self._freeze()

    def _freeze(self) -> None:
        for name, parameter in self.module.named_parameters():
            if belongs(name, self.frozen):
                parameter.requires_grad = False
        # Checkpoints stack the states of all layers otherwise, and some have none.
        self.module.config.hetereogenous_dist_checkpoint = bool(layers_of(self.frozen))
        if self.frozen_below and self.config.recompute_granularity:
            self.module.embedding.register_forward_hook(_want_gradient)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the decoder: NeMo's own passes on neither context nor action."""
        output: Tensor = self.module(*args, **kwargs)
        return output

    @property
    def training_loss_reduction(self) -> LossAndAccuracy:
        """Logs ``token_accuracy`` of a step."""
        if self._training_loss_reduction is None:
            self._training_loss_reduction = LossAndAccuracy(
                lambda accuracy: self.log("token_accuracy", accuracy, batch_size=1)
            )
        return self._training_loss_reduction

    @property
    def validation_loss_reduction(self) -> LossAndAccuracy:
        """Logs ``val_token_accuracy``, the mean over a validation."""
        if self._validation_loss_reduction is None:
            self._validation_loss_reduction = LossAndAccuracy(
                lambda accuracy: self.log("val_token_accuracy", accuracy, on_epoch=True)
            )
        return self._validation_loss_reduction


def _want_gradient(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
    """Let what is computed again in the backward pass see an input that wants a gradient.

    PyTorch would leave out the complete piece otherwise, with the weights in it that are trained.
    """
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()


def nemo_config(model: ModelConfig, cpu: bool, **settings: Any) -> CosmosConfig:
    """NeMo's configuration of ``model``; ``settings`` as for :func:`megatron_settings`."""
    return CosmosConfig(
        **{**asdict(model), **megatron_settings(model, cpu, **settings)},
        seq_length=model.sequence_length,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
        forward_step_fn=_forward_step,
        data_step_fn=_data_step,
    )


def write_context(model: ModelConfig, folder: Path) -> None:
    """Write the ``context`` folder of a NeMo checkpoint: how to build what its weights are of."""
    module = CosmosModel(nemo_config(model, cpu=not torch.cuda.is_available()))
    trainer = nl.Trainer(accelerator="cpu", devices=1, strategy=nl.MegatronStrategy(), logger=False)
    context = TrainerContext(model=module, trainer=trainer, extra={})
    context.io_dump(folder, yaml_attrs=["model"])


def _strategy(recipe: Recipe, cpu: bool) -> nl.MegatronStrategy:
    overlap = recipe.train.overlap_communication and not cpu
    return nl.MegatronStrategy(
        ddp=DistributedDataParallelConfig(
            # This waits for the gradients of each bucket; StopAtNaN looks at the norm of all.
            check_for_nan_in_grad=False,
            # Otherwise all gradients are multiplied before they are summed.
            average_in_collective=not cpu,
            overlap_grad_reduce=overlap,
            overlap_param_gather=overlap,
        ),
        tensor_model_parallel_size=recipe.train.tensor_parallel or 1,
        context_parallel_size=recipe.train.context_parallel or 1,
        sequence_parallel=bool(recipe.train.sequence_parallel),
        pipeline_dtype=torch.float32 if recipe.train.precision == "fp32" else torch.bfloat16,
        process_group_backend="gloo" if cpu else "nccl",
        ckpt_async_save=False,
        # The other format of a distributed optimizer's state can be read by the same layout only,
        # and cannot be written at all with PyTorch's Adam.
        ckpt_optim_fully_reshardable=True,
        gradient_as_bucket_view=not cpu,
    )


def _dtype_of_moments(train: Train) -> torch.dtype:
    return torch.bfloat16 if train.moment_precision == "bf16" else torch.float32


def _optimizer(recipe: Recipe, cpu: bool, **settings: Any) -> nl.MegatronOptimizerModule:
    train = recipe.train
    return nl.MegatronOptimizerModule(
        OptimizerConfig(
            optimizer="adam",
            lr=train.learning_rate,
            weight_decay=train.weight_decay,
            clip_grad=train.clip_grad,
            adam_beta1=0.9,
            adam_beta2=0.95,
            bf16=train.precision == "bf16",
            params_dtype=torch.float32 if train.precision == "fp32" else torch.bfloat16,
            use_distributed_optimizer=not cpu,
            overlap_param_gather=train.overlap_communication and not cpu,
            **settings,
        ),
        lr_scheduler=ScheduleModule(
            highest=train.learning_rate,
            lowest=train.min_learning_rate,
            warmup_steps=train.warmup,
            max_steps=train.max_steps,
            shape=train.schedule,
        ),
    )


class _SeedOfStep(pl.Callback):
    """Derives random numbers of a step from its number, so that a resumed training has the same."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        # Ranks of one copy of the model draw alike, those of different copies do not.
        ranks = parallel_state.get_data_parallel_group(with_context_parallel=True)
        torch.manual_seed(self._seed + trainer.global_step * ranks.size() + ranks.rank())


def fit(
    recipe: Recipe,
    data: ClipData,
    callbacks: list[pl.Callback],
    log: nl.NeMoLogger,
    checkpoint: Path | None = None,
    initial_weights: Path | None = None,
) -> None:
    """Train with NeMo's ``llm.train``.

    Args:
        recipe: with a layout.
        data: samples.
        callbacks: of Lightning.
        log: where to, and the checkpoints to write; without those none are written.
        checkpoint: of this training, to resume from.
        initial_weights: to begin with, where there is no checkpoint; with adapters always.
    """
    train = recipe.train
    cpu = not torch.cuda.is_available()
    callbacks = [StopAtNaN(), *callbacks]
    if not cpu:
        patches.synchronize_before_ddp()
        keep_by_parameter()
        callbacks = [*callbacks, AdamInOneKernel()]
    patches.multiply_shapes()
    patches.add_adapters_without_transformer_engine()
    if data.validation is not None:
        first = [ValidationFirst()] if train.validate_first else []
        callbacks = [*first, *callbacks, ValidationLast()]
    # It continues with the sample after the last one: ClipData knows how many there were.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    if train.lora and train.lora.dropout:
        callbacks = [*callbacks, _SeedOfStep(train.seed)]
    micro_batches = train.global_batch_size // (train.micro_batch_size * train.data_parallel)
    mixed = nl.MegatronMixedPrecision(
        precision="bf16-mixed",
        # Otherwise the model is built in float32, which takes more than training adapters does.
        params_dtype=torch.bfloat16,
        grad_reduce_in_fp32=train.gradient_precision == "fp32",
    )
    trainer = nl.Trainer(
        accelerator="cpu" if cpu else "gpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        max_steps=train.max_steps,
        strategy=_strategy(recipe, cpu),
        plugins=mixed if train.precision == "bf16" else None,
        callbacks=callbacks,
        enable_checkpointing=log.ckpt is not None,
        val_check_interval=train.validate_every,
        # Count steps over the whole run, through resumes, not within an epoch.
        check_val_every_n_epoch=None,
        # Lightning counts micro batches, and ends a validation without a reason where they run out.
        limit_val_batches=train.validation_batches * micro_batches if data.validation else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=False,
        # NeMo 2.7.3's progress printer runs a collective on rank 0 only, which hangs with two.
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    pl.seed_everything(train.seed)
    config = nemo_config(
        recipe.model_for_clips(),
        cpu,
        transformer_impl=train.transformer_impl,
        recompute=train.recompute or "none",
        recompute_layers=train.recompute_layers,
        context_parallel=train.context_parallel or 1,
    )
    fusions = choose_fusions(train.fused)
    fuse(config, fusions)
    settings: dict[str, Any] = {}
    if train.fuses_adam and "adam" in fusions:
        use_fused_adam(_dtype_of_moments(train))
    elif not cpu:
        # AdamW is Transformer Engine's where moments are in bf16: settings without it are refused.
        settings = moment_settings(_dtype_of_moments(train))
    optimizer = _optimizer(recipe, cpu, **settings)
    model = CosmosModel(config, optim=optimizer)
    model.frozen = train.freeze
    model.frozen_below = train.lora is not None or "embedding" in train.freeze
    adapters = make_adapters(train, recipe.model, initial_weights)
    # A checkpoint of adapters lacks the other weights.
    model.strict_loading = adapters is None
    if checkpoint is None or adapters:
        model.initial_weights = initial_weights
    llm.train(
        model=model,
        data=data,
        trainer=trainer,
        log=log,
        resume=nl.AutoResume(
            resume_if_exists=checkpoint is not None,
            resume_from_path=str(checkpoint) if checkpoint else None,
        ),
        optim=optimizer,
        model_transform=adapters,
    )
