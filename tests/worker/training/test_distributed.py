"""Megatron's distributed optimizer on ranks of this machine, as it is used on GPUs."""

import subprocess
import sys

import pytest
import torch

from tests.conftest import REPOSITORY


@pytest.fixture
def trained(tmp_path):
    """What the trainings of :mod:`tests.worker.training.distributed_worker` left."""
    for what in ("train", "resume"):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "tests.worker.training.distributed_worker", what, str(tmp_path)]
        done = subprocess.run(
            [sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
    names = {path.name.removesuffix("-0.pt") for path in tmp_path.glob("*-0.pt")}
    return {
        name: [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)] for name in names
    }


def difference(ranks, others, name):
    return max(
        float((own[name].float() - other[name].float()).norm() / other[name].float().norm())
        for own, other in zip(ranks, others, strict=True)
    )


@pytest.mark.slow
def test_trainings_differ_by_rounding_alone(trained):
    """Of AdamW in one pass, bf16 gradients, bf16 moments, and after resuming from each other."""
    expected = trained.pop("pytorch")
    assert len(trained) == 6
    for name, ranks in trained.items():
        for own, other in zip(ranks, expected, strict=True):
            steps = len(own["rows"])
            rows = torch.tensor(own["rows"]), torch.tensor(other["rows"][-steps:])
            torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-3, msg=name)
            assert torch.equal(own["weights"], ranks[0]["weights"])  # gathered by all
        assert difference(ranks, expected, "weights") < 2e-3, name
        if name != "bf16-gradients":  # whose ranks update other parts
            assert difference(ranks, expected, "exact") < 2e-3, name
    before, after = trained["bf16-moments"], trained["bf16-moments-resumed"]
    for own, other in zip(after, before, strict=True):
        assert own["rows"] == other["rows"][-len(own["rows"]) :]
        assert torch.equal(own["exact"], other["exact"])
