"""Two ranks that share the sequence of a sample train as one, and continue each other's work."""

import pytest

from tests.worker.training.fit import train, write_weights

pytestmark = pytest.mark.slow

TWO = ("train.gpus=2", "train.context_parallel=2")
MEASURED = ("loss", "token_accuracy", "grad_norm")


def steps(rows):
    return [[row[name] for name in MEASURED] for row in rows if "loss" in row]


def test_losses_are_those_of_one_rank_from_checkpoints_of_either(tmp_path):
    """The last label of a sample does not count: the two parts have different numbers of labels."""
    clipped = ("train.clip_grad=0.5", "train.micro_batch_size=2")
    alone = train(tmp_path / "one", *clipped)
    assert all(row["grad_norm"] > 1 for row in alone if "loss" in row)
    both = tmp_path / "two"
    train(both, *clipped, *TWO, "train.max_steps=2", ranks=2)
    train(both, *clipped, "train.max_steps=3")
    rows = train(both, *clipped, *TWO, ranks=2)
    assert len(steps(rows)) == 4
    for found, expected in zip(steps(rows), steps(alone), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    validated = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    for row in alone:
        if "validation_loss" in row:
            assert validated[row["step"]] == pytest.approx(row["validation_loss"], rel=1e-5)


def test_adapters_and_what_is_computed_again(tmp_path):
    write_weights(tmp_path / "base.pt")
    settings = ("train.lora.rank=4", f"train.init_from={tmp_path / 'base.pt'}")
    settings += ("train.learning_rate=3e-2", "train.recompute=full", "train.max_steps=3")
    alone = train(tmp_path / "one", *settings)
    rows = train(tmp_path / "two", *settings, *TWO, ranks=2)
    for found, expected in zip(steps(rows), steps(alone), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
