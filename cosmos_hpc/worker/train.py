"""The train stage: post-training on a run's tokens, resumable, with metrics in local files."""

from __future__ import annotations

import math
import os

import torch

from cosmos_hpc import files
from cosmos_hpc.errors import WorkError
from cosmos_hpc.progress import say
from cosmos_hpc.recipes import Recipe
from cosmos_hpc.runs import RunFolder
from cosmos_hpc.worker.dataset import Clips, load_splits
from cosmos_hpc.worker.download import initial_weights


def train(run: RunFolder, recipe: Recipe) -> None:
    """Train to ``train.max_steps`` and mark the stage done. Every rank runs this.

    Raises:
        WorkError: there is nothing to train on, the clips do not fit the recipe, or no checkpoint
            was written.
    """
    documents = load_splits(run, recipe.data.split)
    say("clips: " + ", ".join(f"{len(chosen)} {part}" for part, chosen in documents.items()))
    training, validation = _clips(run, recipe, documents)
    reference = {"untrained": math.log(recipe.model.output_vocab_size)}
    if _is_first_rank():
        reference["unigram"] = training.unigram_loss()

    say("loading NeMo")
    # It takes ten seconds to import, and the adaptation must come after it.
    from cosmos_hpc.worker import nemo
    from cosmos_hpc.worker.checkpoints import latest_checkpoint
    from cosmos_hpc.worker.metrics import MetricsFile

    latest = latest_checkpoint(run.checkpoints)
    # A run that was killed between its last checkpoint and its marker has no step left to do.
    if latest is None or latest[0] < recipe.train.max_steps:
        prepare_device()
        metrics = MetricsFile(run.metrics, run.loss_curve, reference)
        data = nemo.ClipData(training, validation, recipe)
        nemo.fit(
            recipe,
            data,
            [metrics],
            nemo.run_logger(run, recipe, validates=validation is not None),
            checkpoint=latest[1] if latest else None,
            initial_weights=initial_weights(run, recipe),
        )
    if _is_first_rank():
        counts = {part: len(chosen) for part, chosen in documents.items()}
        _mark_done(run, recipe.train.max_steps, counts, reference)


def _is_first_rank() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _clips(
    run: RunFolder, recipe: Recipe, documents: dict[str, list[int]]
) -> tuple[Clips, Clips | None]:
    """Training clips for all steps, and validation clips where there are any."""
    sequence = recipe.model_for_clips().sequence_length
    prefix, train = str(run.token_prefix), recipe.train
    samples = train.max_steps * train.global_batch_size
    training = Clips(prefix, documents["train"], samples, sequence, train.seed)
    if not documents["validation"]:
        return training, None
    samples = train.validation_batches * train.global_batch_size
    return training, Clips(prefix, documents["validation"], samples, sequence, once=True)


def prepare_device() -> None:
    """Settings that must be there before CUDA starts; without CUDA, the adaptation to the CPU."""
    if torch.cuda.is_available():
        # Megatron's overlap of communication and computation relies on this order of kernels.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        # Long samples come close to the limit, where fragments would be what is missing.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        return
    from cosmos_hpc.worker import cpu

    cpu.adapt()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def _mark_done(
    run: RunFolder, steps: int, counts: dict[str, int], reference: dict[str, float]
) -> None:
    from cosmos_hpc.worker.checkpoints import latest_checkpoint
    from cosmos_hpc.worker.metrics import draw_losses

    latest = latest_checkpoint(run.checkpoints)
    if latest is None or latest[0] < steps:
        found = f"its latest is of step {latest[0]}" if latest else "it has none"
        raise WorkError(f"training ended at step {steps} without a whole checkpoint: {found}")
    rows = files.read_jsonl(run.metrics)
    draw_losses(rows, run.loss_curve, reference)
    losses = [row["loss"] for row in rows if "loss" in row]
    validated = [row["validation_loss"] for row in rows if "validation_loss" in row]
    marker = {
        "steps": latest[0],
        "clips": counts,
        "first_loss": losses[0],
        "loss": losses[-1],
        "validation_loss": validated[-1] if validated else None,
        "reference": reference,
        "checkpoint": str(latest[1].relative_to(run.path)),
    }
    files.write_json(run.marker("train"), marker)
    say(f"trained {latest[0]} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}")
