"""Training steps of every kind of model through NeMo, on random samples."""

import json
import math
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def losses(recipe, *overrides, ranks=1):
    """Losses of three steps, by the benchmark that runs on GPUs as well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "benchmarks/training.py", recipe]
    done = subprocess.run(
        [*command, "train.max_steps=3", "train.global_batch_size=4", *overrides],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(result.removeprefix("RESULT "))["losses"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ar_tiny_v2w", "ar_tiny_action"])
def test_models_with_text_and_actions_train_on_one_rank_and_on_two(recipe):
    batch = "train.micro_batch_size=4"
    one = losses(recipe, batch)
    assert one[0] == pytest.approx(math.log(64000), abs=0.1)
    two = losses(
        recipe, batch, "train.tensor_parallel=2", "train.sequence_parallel=true", ranks=2
    )
    assert two == pytest.approx(one, abs=2e-3)
    half = losses(recipe, batch, "train.precision=bf16")
    assert half == pytest.approx(one, abs=2e-2)
