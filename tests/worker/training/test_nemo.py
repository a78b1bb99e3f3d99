"""Training steps of every kind of model through NeMo, on random samples."""

import json
import math

import pytest

from tests.ranks import run_ranks


def train(folder, recipe, *overrides, ranks=1):
    """Three steps of the benchmark that runs on GPUs as well."""
    arguments = (recipe, "train.max_steps=3", "train.global_batch_size=4", *overrides)
    return run_ranks(folder, "benchmarks.training", *arguments, ranks=ranks, timeout=200)


def losses(*arguments, ranks=1):
    done = train(*arguments, ranks=ranks)
    assert done.succeeded, done.log[-3000:]
    result = next(line for line in done.log.splitlines() if line.startswith("RESULT "))
    return json.loads(result.removeprefix("RESULT "))["losses"]


TENSOR = ("train.tensor_parallel=2", "train.sequence_parallel=true")
CONTEXT = ("train.context_parallel=2",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "precision", "close"),
    [("ar_tiny_v2w", "fp32", 1e-3), ("ar_tiny_action", "bf16", 2e-2)],
)
def test_models_with_text_and_actions_train_on_one_rank_and_on_two(
    tmp_path, recipe, precision, close
):
    every, some = "train.micro_batch_size=4", "train.recompute_layers=2"
    one = losses(tmp_path, recipe, every, f"train.precision={precision}", some)
    assert one[0] == pytest.approx(math.log(64000), abs=0.1)
    for shared in (TENSOR, CONTEXT):
        assert losses(tmp_path, recipe, every, *shared, ranks=2) == pytest.approx(one, abs=close)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_ends_the_training(tmp_path):
    done = train(tmp_path, "ar_tiny", "train.micro_batch_size=4", "train.learning_rate=1e30")
    assert not done.succeeded
    assert "the gradient of step 2 is not finite" in done.log
