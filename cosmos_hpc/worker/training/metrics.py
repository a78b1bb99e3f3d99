"""Metrics of a training: one line per step in a local file, and a picture of the loss."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import duration, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MetricsFile(pl.Callback):
    """Writes ``metrics.jsonl`` and the loss curve, and says how far the training is.

    A line holds ``step``, ``loss`` (nats per token), ``token_accuracy`` (fraction of tokens that
    the model ranked most likely), ``learning_rate``, ``grad_norm`` (before it is clipped),
    ``seconds`` of the step, ``tokens_per_second`` (of all ranks), on a GPU ``gpu_memory_gb`` (peak
    memory of this rank's tensors so far), and ``time`` (Unix). Lines after a validation hold
    ``step``, ``validation_loss``, ``validation_token_accuracy`` and ``time``. Steps after the
    checkpoint that a resumed run starts from are dropped: they are done again.

    Args:
        path: of the file.
        curve: the picture.
        reference: losses to draw as lines, by name: ``untrained``, and ``unigram`` on the first
            rank.
        tokens_per_step: inputs of a global batch.
        starts_trained: whether a first loss of a model that is not trained is worth a warning.
        say_every: seconds between progress lines.
    """

    def __init__(
        self,
        path: Path,
        curve: Path,
        reference: dict[str, float],
        tokens_per_step: int,
        starts_trained: bool = False,
        say_every: float = 10.0,
    ) -> None:
        self.path, self.curve, self.reference = path, curve, reference
        self.tokens_per_step, self.starts_trained = tokens_per_step, starts_trained
        self.say_every = say_every
        self._rate = 0.0
        self._said = 0.0
        self._step_started = time.monotonic()
        self._first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut the file back to the step that the training starts from."""
        self._first_step = trainer.global_step
        self._step_started = self._started = time.monotonic()
        if not trainer.is_global_zero:
            return
        rows = files.read_jsonl(self.path) if trainer.global_step else []
        files.write_jsonl(self.path, [row for row in rows if row["step"] <= trainer.global_step])
        where = f"from step {trainer.global_step}" if trainer.global_step else "from the beginning"
        say(f"training {where} to step {trainer.max_steps}")

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Note the learning rate, which is the next step's when this one ends."""
        groups = trainer.optimizers[0].param_groups
        # A rank may hold no part of what is trained.
        self._rate = float(groups[0]["lr"]) if groups else 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Write the line of a step, and give loggers what NeMo does not."""
        now = time.monotonic()
        seconds, self._step_started = now - self._step_started, now
        measured = {"seconds": seconds, "tokens_per_second": self.tokens_per_step / seconds}
        if torch.cuda.is_available():
            measured["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        pl_module.log_dict(measured, batch_size=1)
        if not trainer.is_global_zero:
            return
        seen = trainer.callback_metrics
        loss, step = float(seen["reduced_train_loss"]), trainer.global_step
        self._append(
            step=step,
            loss=loss,
            token_accuracy=float(seen["token_accuracy"]),
            learning_rate=self._rate,
            grad_norm=float(seen["grad_norm"]),
            **{name: round(value, 4) for name, value in measured.items()},
        )
        if step == 1 and self.starts_trained and (doubt := doubtful_start(loss, self.reference)):
            say(doubt)
        if now - self._said >= self.say_every or step == trainer.max_steps:
            self._said = now
            a_step = (now - self._started) / (step - self._first_step)
            left = (trainer.max_steps - step) * a_step
            say(
                f"step {step}/{trainer.max_steps}, loss {loss:.3f}, {a_step:.2f} s/step, "
                f"{duration(left)} left"
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line of a validation and draw the curve."""
        if not trainer.is_global_zero or "val_loss" not in trainer.callback_metrics:
            return
        loss = float(trainer.callback_metrics["val_loss"])
        accuracy = float(trainer.callback_metrics["val_token_accuracy"])
        step = trainer.global_step
        self._append(step=step, validation_loss=loss, validation_token_accuracy=accuracy)
        say(f"step {step}: validation loss {loss:.3f}")
        draw_losses(files.read_jsonl(self.path), self.curve, self.reference)
        # A validation is not part of the next step's time.
        self._step_started = time.monotonic()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Draw the curve of a training that was stopped, or has failed."""
        if trainer.is_global_zero and self.path.exists():
            draw_losses(files.read_jsonl(self.path), self.curve, self.reference)

    def _append(self, **row: float) -> None:
        with open(self.path, "a") as f:
            f.write(json.dumps({**row, "time": round(time.time(), 3)}) + "\n")


class StopAtNaN(pl.Callback):
    """Ends a training whose gradient is not finite, before a checkpoint is written of it.

    Raises:
        WorkError: at the end of that step, on every rank.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Look at the norm of all ranks' gradients, before it was clipped."""
        norm = float(trainer.callback_metrics["grad_norm"])
        if not math.isfinite(norm):
            raise WorkError(
                f"the gradient of step {trainer.global_step} is not finite (its norm is {norm}). "
                f"Checkpoints of earlier steps are kept: resume from them with a lower "
                f"train.learning_rate, or begin a new run with a longer train.warmup_steps"
            )


#: Share of the untrained model's loss from which on a first loss is doubtful. Trained models lie
#: far below on ids of their own tokenizer; on those of another, they lie about there or above.
_DOUBTFUL = 0.85


def doubtful_start(loss: float, reference: dict[str, float]) -> str | None:
    """A warning where the first loss of a trained model is about that of an untrained one.

    Args:
        loss: of the first step, before anything was learnt, in nats per token.
        reference: of the ``untrained`` model, and of the best ``unigram`` model of the data.
    """
    if loss < max(_DOUBTFUL * reference["untrained"], reference["unigram"]):
        return None
    return (
        f"warning: the first loss is {loss:.2f} nats per token, as if the weights were not trained "
        f"(then it is {reference['untrained']:.2f}): are train.init_from and data.tokenizer of one "
        f"model? Where it is moved to another tokenizer, this is as it should be"
    )


def draw_losses(rows: list[dict[str, Any]], path: Path, reference: dict[str, float]) -> None:
    """Draw training and validation loss over steps as PNG, with ``reference`` losses as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(loss_figure(rows, reference)).print_png(str(temporary))
    temporary.replace(path)


def loss_figure(rows: list[dict[str, Any]], reference: dict[str, float]) -> Figure:
    """The picture of :func:`draw_losses`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("validation_loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    for (name, loss), style in zip(reference.items(), ("--", ":", "-."), strict=False):
        axes.axhline(loss, color="grey", linestyle=style, linewidth=1, label=f"{name}, {loss:.2f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure
