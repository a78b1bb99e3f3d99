"""The learning rate over the steps of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from nemo.lightning.pytorch.optim import LRSchedulerModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class Curve:
    """Learning rates of all steps: a linear warm-up, then a shape.

    Attributes:
        highest: after the warm-up.
        lowest: of the last step, where the shape falls.
        warmup_steps: step ``i`` of these, from 0, has ``(i + 1) / (warmup_steps + 1)`` of the
            highest.
        max_steps: of the training in total.
        shape: ``constant``, half a ``cosine``, or ``linear``.
    """

    highest: float
    lowest: float
    warmup_steps: int
    max_steps: int
    shape: Literal["constant", "cosine", "linear"]

    def at(self, step: int) -> float:
        """Learning rate of the step that follows ``step`` completed ones."""
        if step < self.warmup_steps:
            return self.highest * (step + 1) / (self.warmup_steps + 1)
        if self.shape == "constant":
            return self.highest
        falling = max(1, self.max_steps - 1 - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / falling)
        share = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.lowest + (self.highest - self.lowest) * share


class Schedule(LRScheduler):
    """Gives each step the learning rate of a curve.

    Its state is the number of steps alone: a resumed training follows the settings that it is
    resumed with, where PyTorch's own schedules would follow those that they began with.
    """

    def __init__(self, optimizer: Optimizer, curve: Curve) -> None:
        self._curve = curve
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Of all groups of parameters."""
        return [self._curve.at(self.last_epoch)] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume after this many steps; the state of another schedule is accepted."""
        self.last_epoch = state_dict["last_epoch"]
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


class ScheduleModule(LRSchedulerModule):
    """NeMo's holder of a :class:`Schedule`; its arguments are those of :class:`Curve`.

    NeMo writes them into checkpoints, so they are plain numbers and texts.
    """

    def __init__(
        self,
        highest: float,
        lowest: float,
        warmup_steps: int,
        max_steps: int,
        shape: Literal["constant", "cosine", "linear"],
    ) -> None:
        super().__init__()
        self.curve = Curve(highest, lowest, warmup_steps, max_steps, shape)

    def scheduler(self, model: Any, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer, and its schedule by the step."""
        schedule = Schedule(optimizer, self.curve)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1},
        }
