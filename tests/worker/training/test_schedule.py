"""Learning rates of steps, and what a resumed training makes of them."""

import pytest
import torch

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.worker.training.schedule import Curve, Schedule


def rates(**changes):
    settings = {"highest": 4.0, "lowest": 1.0, "warmup_steps": 3, "max_steps": 8}
    curve = Curve(**{**settings, "shape": "constant", **changes})
    return [curve.at(step) for step in range(curve.max_steps)]


def test_a_warm_up_then_the_shape_down_to_the_lowest():
    assert rates() == [1, 2, 3, 4, 4, 4, 4, 4]
    assert rates(shape="linear") == [1, 2, 3, 4, 3.25, 2.5, 1.75, 1]
    cosine = rates(shape="cosine")
    assert cosine[:4] == [1, 2, 3, 4]
    assert cosine[3:] == pytest.approx([4, 3.560660, 2.5, 1.439340, 1])
    assert rates(warmup_steps=0, max_steps=1, shape="linear") == [4]


def test_a_resumed_schedule_follows_the_settings_that_it_is_resumed_with():
    def begin(max_steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=9.0)
        curve = Curve(4.0, 0.0, 0, max_steps, "linear")
        return optimizer, Schedule(optimizer, curve)

    optimizer, schedule = begin(5)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 1
    longer, resumed = begin(9)
    longer.load_state_dict(optimizer.state_dict())
    # NeMo's, of version 0.1, holds much besides.
    resumed.load_state_dict({**schedule.state_dict(), "max_steps": 5, "min_lr": 4.0})
    assert longer.param_groups[0]["lr"] == 4 * (1 - 3 / 8)


def test_training_warms_up_where_it_starts_from_weights():
    assert load_recipe("ar_tiny").train.warmup == 0
    assert load_recipe("ar4b").train.warmup == 100
    assert load_recipe("ar4b", ["train.max_steps=300"]).train.warmup == 30
    assert load_recipe("ar4b", ["train.warmup_steps=0"]).train.warmup == 0
