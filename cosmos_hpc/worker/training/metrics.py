"""Metrics of a training: a line a step in a local file, and a picture of the loss."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import duration, say


class MetricsFile(pl.Callback):
    """Writes ``metrics.jsonl`` and the loss curve, and says how far the training is.

    A line holds ``step``, ``loss`` (nats an id), ``learning_rate``, ``seconds`` of the step and
    ``time`` (Unix). Lines after a validation hold ``step``, ``validation_loss`` and ``time``. Steps
    after the checkpoint that a resumed run starts from are dropped: they are done again.

    Args:
        path: of the file; the curve is drawn beside it.
        reference: losses to draw as lines, by name.
        say_every: seconds between progress lines.
    """

    def __init__(
        self, path: Path, curve: Path, reference: dict[str, float], say_every: float = 10.0
    ) -> None:
        self.path, self.curve, self.reference = path, curve, reference
        self.say_every = say_every
        self._said = 0.0
        self._step_started = time.monotonic()
        self._first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut the file back to the step that the training starts from."""
        self._first_step = trainer.global_step
        self._step_started = self._started = time.monotonic()
        if not trainer.is_global_zero:
            return
        kept = [row for row in files.read_jsonl(self.path) if row["step"] <= trainer.global_step]
        files.write_jsonl(self.path, kept)
        where = f"from step {trainer.global_step}" if trainer.global_step else "from the beginning"
        say(f"training {where} to step {trainer.max_steps}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Write the line of a step."""
        now = time.monotonic()
        seconds, self._step_started = now - self._step_started, now
        if not trainer.is_global_zero:
            return
        loss = float(trainer.callback_metrics["reduced_train_loss"])
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        step = trainer.global_step
        self._append(step=step, loss=loss, learning_rate=rate, seconds=round(seconds, 4))
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
        self._append(step=trainer.global_step, validation_loss=loss)
        say(f"step {trainer.global_step}: validation loss {loss:.3f}")
        draw_losses(files.read_jsonl(self.path), self.curve, self.reference)
        # A validation is not part of the next step's time.
        self._step_started = time.monotonic()

    def _append(self, **row: float) -> None:
        with open(self.path, "a") as f:
            f.write(json.dumps({**row, "time": round(time.time(), 3)}) + "\n")


def draw_losses(rows: list[dict[str, Any]], path: Path, reference: dict[str, float]) -> None:
    """Draw training and validation loss over steps as PNG, with ``reference`` losses as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("validation_loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    for (name, loss), style in zip(reference.items(), ("--", ":", "-."), strict=False):
        axes.axhline(loss, color="grey", linestyle=style, linewidth=1, label=f"{name}, {loss:.2f}")
    axes.set(xlabel="step", ylabel="loss (nats an id)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_png(str(temporary))
    temporary.replace(path)
