"""The train stage: post-training on a run's tokens, resumable, with metrics in local files."""

from __future__ import annotations

import math
import os

import torch

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.fetched import initial_weights
from cosmos_hpc.runs.folder import RunFolder, action_stats_of
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.utils.imports import large_imports, load
from cosmos_hpc.utils.progress import count_of, say
from cosmos_hpc.worker.children import (
    end_with_a_killed_child,
    let_managers_end_with_this_process,
)
from cosmos_hpc.worker.datasets.samples import Epochs


def train(run: RunFolder, recipe: Recipe, task: int = 0) -> None:
    """Train to ``train.max_steps`` and mark the stage done. Every rank runs this.

    Raises:
        WorkError: there is nothing to train on, the clips do not fit the recipe, or no checkpoint
            was written.
    """
    training, validation, counts = load_data(run, recipe)
    say(f"{recipe.kind.samples}: " + ", ".join(f"{count} {part}" for part, count in counts.items()))
    reference = {"untrained": math.log(recipe.model.output_vocab_size)}
    if _is_first_rank():
        reference["unigram"] = training.unigram_loss()

    say("loading NeMo")
    # It takes seconds to import, and the adaptation must come after it.
    with large_imports(freeze=True):
        from cosmos_hpc.worker.training import loggers, nemo
        from cosmos_hpc.worker.training.checkpoints import latest_checkpoint
        from cosmos_hpc.worker.training.data import ClipData
        from cosmos_hpc.worker.training.metrics import MetricsFile

    latest = latest_checkpoint(run.train.checkpoints, set_aside=_is_first_rank())
    # A run that was killed between its last checkpoint and its marker has no step left to do.
    if latest is None or latest[0] < recipe.train.max_steps:
        prepare_device()
        end_with_a_killed_child()
        let_managers_end_with_this_process()
        metrics = MetricsFile(
            run.train.metrics,
            run.train.loss_curve,
            reference,
            tokens_per_step=recipe.train.global_batch_size
            * recipe.model_for_clips().sequence_length,
            starts_trained=recipe.train.init_from is not None,
        )
        data = ClipData(training, validation, recipe)
        nemo.fit(
            recipe,
            data,
            [metrics],
            loggers.run_logger(run, recipe, validates=validation is not None),
            checkpoint=latest[1] if latest else None,
            initial_weights=initial_weights(run, recipe),
        )
    if _is_first_rank():
        _mark_done(run, recipe.train.max_steps, counts, reference)


def _is_first_rank() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def load_data(run: RunFolder, recipe: Recipe) -> tuple[Epochs, Epochs | None, dict[str, int]]:
    """A run's training samples for all steps, validation samples where there are any, and counts.

    Returns:
        Training, validation, and the number of clips (of pairs, for actions) in each part.

    Raises:
        WorkError: there is nothing to train on, or it does not fit the recipe.
    """
    train = recipe.train
    with large_imports(freeze=True):
        samples_of = load(recipe.kind.training)
    make, counts = samples_of(run, recipe)
    if not counts["train"]:
        raise WorkError(f"run {run.name} has no clips to train on")
    steps = train.max_steps * train.global_batch_size
    training = make("train", length=steps, seed=train.seed)
    if not counts["validation"]:
        return training, None, counts
    batches = train.validation_batches * train.global_batch_size
    return training, make("validation", length=batches, once=True), counts


def prepare_device() -> None:
    """Settings that must be there before CUDA starts; without CUDA, the adaptation to the CPU."""
    if torch.cuda.is_available():
        # Megatron's overlap of communication and computation relies on this order of kernels.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        # Long samples come close to the limit, where fragments would be what is missing.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        return
    from cosmos_hpc.worker.training import cpu

    cpu.adapt()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def _mark_done(
    run: RunFolder, steps: int, counts: dict[str, int], reference: dict[str, float]
) -> None:
    from cosmos_hpc.worker.training.checkpoints import latest_checkpoint
    from cosmos_hpc.worker.training.metrics import draw_losses

    latest = latest_checkpoint(run.train.checkpoints)
    if latest is None or latest[0] < steps:
        found = f"its latest is of step {latest[0]}" if latest else "it has none"
        raise WorkError(f"training ended at step {steps} without a complete checkpoint: {found}")
    if stats := files.read_json(run.tokens.action_stats):
        # The weights are of no use without: new actions must be made alike as well.
        files.write_json(action_stats_of(latest[1]), stats)
    rows = files.read_jsonl(run.train.metrics)
    draw_losses(rows, run.train.loss_curve, reference)
    losses = [row["loss"] for row in rows if "loss" in row]
    # That before the first step says nothing of what was trained.
    validated = [row["validation_loss"] for row in rows if "validation_loss" in row and row["step"]]
    marker = {
        "steps": latest[0],
        "clips": counts,
        "first_loss": losses[0],
        "loss": losses[-1],
        "validation_loss": validated[-1] if validated else None,
        "reference": reference,
        "checkpoint": str(latest[1].relative_to(run.path)),
    }
    files.write_json(marker_path(run, "train"), marker)
    say(f"trained {count_of(latest[0], 'step')}, loss {losses[0]:.3f} to {losses[-1]:.3f}")
