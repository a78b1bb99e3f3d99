"""The train stage: post-training on a run's tokens, resumable, with metrics in local files."""

from __future__ import annotations

import math
import os
import time

import torch

from cosmos_hpc import files
from cosmos_hpc.progress import say
from cosmos_hpc.recipe import Recipe
from cosmos_hpc.runs import RunFolder
from cosmos_hpc.worker.dataset import Clips, load_splits


def train(run: RunFolder, recipe: Recipe) -> None:
    """Train to ``train.max_steps`` and mark the stage done. Every rank runs this.

    Raises:
        WorkError: there is nothing to train on, or the clips do not fit the recipe.
    """
    lock = run.train / ".lock"
    attempt = f"{os.environ.get('TORCHELASTIC_RUN_ID')}:{os.environ.get('MASTER_PORT')}"
    if int(os.environ.get("RANK", "0")) == 0:

        def waiting(holder: str) -> None:
            say(f"the run is being trained by {holder}; waiting for it")

        with files.lock(lock, waiting, note=attempt):
            _train(run, recipe)
    else:
        # Only then is it decided whether there is anything left to train.
        while not lock.exists() or attempt not in lock.read_text():
            time.sleep(0.2)
        _train(run, recipe)


def _train(run: RunFolder, recipe: Recipe) -> None:
    marker = files.read_json(run.marker("train"))
    if marker and marker["steps"] >= recipe.train.max_steps:
        say(f"training is done already, {marker['steps']} steps")
        return
    documents = load_splits(run, recipe.data.split)
    sequence = recipe.model_for_clips().sequence_length
    prefix, settings = str(run.token_prefix), recipe.train
    samples = settings.max_steps * settings.global_batch_size
    training = Clips(prefix, documents["train"], samples, sequence, settings.seed)
    validation = None
    if documents["validation"]:
        samples = settings.validation_batches * settings.global_batch_size
        validation = Clips(prefix, documents["validation"], samples, sequence, once=True)
    counts = {part: len(chosen) for part, chosen in documents.items()}
    say("clips: " + ", ".join(f"{count} {part}" for part, count in counts.items()))
    reference = {
        "untrained": math.log(recipe.model.output_vocab_size),
        "unigram": training.unigram_loss(),
    }

    say("loading NeMo")
    # Both take seconds to import, and the adaptation must come after them.
    from cosmos_hpc.worker import nemo
    from cosmos_hpc.worker.metrics import MetricsFile

    if not torch.cuda.is_available():
        from cosmos_hpc.worker import cpu

        cpu.adapt()
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    metrics = MetricsFile(run.metrics, run.loss_curve, reference)
    trainer = nemo.fit(run, recipe, nemo.ClipData(training, validation, recipe), [metrics])
    if trainer.is_global_zero:
        _mark_done(run, trainer.global_step, counts, reference)


def _mark_done(
    run: RunFolder, steps: int, counts: dict[str, int], reference: dict[str, float]
) -> None:
    from cosmos_hpc.worker.nemo import latest_checkpoint

    rows = files.read_jsonl(run.metrics)
    losses = [row["loss"] for row in rows if "loss" in row]
    validated = [row["validation_loss"] for row in rows if "validation_loss" in row]
    checkpoint = latest_checkpoint(run.checkpoints)
    marker = {
        "steps": steps,
        "clips": counts,
        "first_loss": losses[0],
        "loss": losses[-1],
        "validation_loss": validated[-1] if validated else None,
        "reference": reference,
        "checkpoint": str(checkpoint.relative_to(run.path)) if checkpoint else None,
    }
    files.write_json(run.marker("train"), marker)
    say(f"trained {steps} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}")
