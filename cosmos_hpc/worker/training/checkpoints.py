"""When checkpoints are written, and which one to resume from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nemo import lightning as nl

from cosmos_hpc.errors import Stopped
from cosmos_hpc.models.checkpoints.distributed_formats import find_damage
from cosmos_hpc.runs.sources import steps_of
from cosmos_hpc.utils.progress import say


class Checkpoints(nl.ModelCheckpoint):
    """NeMo's checkpoints at regular steps, and always after the last one.

    Where a validation falls on the same step it comes first: whoever resumes from the checkpoint
    finds its result in the metrics. NeMo itself saves before validating, and leaves out the last
    step when no validation follows it.

    Args:
        save_every: steps between checkpoints.
        validate_every: steps between validations; None without any.
        stop_requested: once this says yes, the training saves after the step and stops.
        kwargs: as for NeMo's.
    """

    def __init__(
        self,
        save_every: int,
        validate_every: int | None,
        stop_requested: Callable[[], bool],
        **kwargs: Any,
    ) -> None:
        # Off in NeMo's own hooks; this class decides.
        super().__init__(every_n_train_steps=0, every_n_epochs=0, **kwargs)
        self.save_every, self.validate_every = save_every, validate_every
        self.stop_requested = stop_requested

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Save now, unless a validation comes first."""
        step, every = trainer.global_step, self.validate_every
        if not every or (step % every and step < trainer.max_steps):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save what was just validated."""
        self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Nothing: epochs have no meaning here."""

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save the last step where nothing else has."""
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if not step:
            return  # after the validation before the first step
        last = step >= trainer.max_steps
        stop = not last and self._asked_to_stop()
        due = last or stop or step % self.save_every == 0
        if due and step != self._last_global_step_saved:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        if stop:
            raise Stopped(f"stopped after step {step}, which is saved")

    def _asked_to_stop(self) -> bool:
        """What the first rank sees: the others must decide alike."""
        answer = [self.stop_requested()]
        if torch.distributed.get_world_size() > 1:
            torch.distributed.broadcast_object_list(answer, src=0)
        return answer[0]


class ValidationLast(pl.Callback):
    """Validates the last step of a run, where Lightning does not: whichever number it has."""

    def __init__(self) -> None:
        self._step: int | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step."""
        self._step = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As Lightning does it between two steps."""
        if trainer.global_step >= trainer.max_steps and trainer.global_step != self._step:
            _validate(trainer)


class ValidationFirst(pl.Callback):
    """Validates before the first step of a run."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As Lightning does it between two steps."""
        if not trainer.global_step:
            _validate(trainer)


def _validate(trainer: pl.Trainer) -> None:
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def latest_checkpoint(folder: Path, set_aside: bool = False) -> tuple[int, Path] | None:
    """Steps and path of the complete checkpoint of the most steps; None where there is none.

    NeMo marks a checkpoint while it is written, and refuses to start when its last one is marked;
    here the one before is taken instead, as it is where files of the last one are gone or too
    short. NeMo counts steps from 0: after 60 it says ``step=59``.

    Args:
        folder: of the checkpoints.
        set_aside: rename those that are damaged, and say so; of several ranks one does.
    """
    finished = {}
    for path in folder.glob("step=*"):
        marked = Path(f"{path}{nl.ModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX}").exists()
        if path.is_dir() and not marked and (path / "weights" / "metadata.json").is_file():
            steps = steps_of(path)
            if steps:
                finished[steps, path.name] = path
    for (steps, _), path in sorted(finished.items(), reverse=True):
        damage = find_damage(path / "weights")
        if damage is None:
            return steps, path
        if set_aside and path.is_dir() and not path.is_symlink():
            aside = path.with_name(f"damaged-{path.name}")
            path.rename(aside)
            say(f"checkpoint {path.name} is damaged ({damage}); set aside as {aside}")
    return None
