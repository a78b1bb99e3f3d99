"""Training with Megatron's distributed optimizer, as on GPUs, on two ranks of this machine."""

import shutil

import pytest

from tests.worker.training.fit import train

BF16 = ["train.precision=bf16", "train.gpus=2"]
LOW = ["train.gradient_precision=bf16", "train.moment_precision=bf16"]


def as_on_gpus(folder, *overrides):
    return train(folder, *BF16, *overrides, ranks=2, AS_ON_GPUS="1")


def resumed(folder, source, *overrides):
    """What a training writes that resumes the one of a folder after half of its steps."""
    shutil.copytree(source, folder, symlinks=True)
    for checkpoint in (folder / "train/checkpoints").glob("step=3*"):
        checkpoint.unlink() if checkpoint.is_symlink() else shutil.rmtree(checkpoint)
    (folder / "train/metrics.jsonl").unlink()
    return as_on_gpus(folder, *overrides)


def numbers(rows):
    return [
        [row[name] for name in ("step", "loss", "grad_norm", "validation_loss") if name in row]
        for row in rows
    ]


def assert_close(rows, expected):
    assert len(rows) == len(expected)
    for row, wanted in zip(numbers(rows), numbers(expected), strict=True):
        assert row == pytest.approx(wanted, rel=1e-3)


@pytest.mark.slow
def test_trainings_differ_by_rounding_alone(tmp_path):
    """With PyTorch's AdamW and that in one pass, from the beginning and resumed from the other."""
    plain = as_on_gpus(tmp_path / "plain", "train.fusions=[]")
    assert plain[-1]["validation_loss"] < 10  # it learns
    fused = as_on_gpus(tmp_path / "fused", "train.fusions=[adam]", *LOW)
    assert_close(fused, plain)
    half = next(n for n, row in enumerate(plain) if row["step"] == 3)
    rows = resumed(tmp_path / "a", tmp_path / "plain", "train.fusions=[adam]")
    assert_close(rows, plain[half:])
    # What is saved is all that there is; and any layout reads it.
    rows = resumed(tmp_path / "b", tmp_path / "fused", "train.fusions=[adam]", *LOW)
    assert numbers(rows) == numbers(fused[half:])
    rows = resumed(
        tmp_path / "c", tmp_path / "fused", "train.fusions=[]", "train.tensor_parallel=2"
    )
    assert_close(rows, fused[half:])
