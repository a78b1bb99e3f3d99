"""Training with Megatron's distributed optimizer, as on GPUs, on two ranks of this machine."""

import shutil

import pytest

from tests.worker.training.fit import WITH_TRANSFORMER_ENGINE, train

BF16 = ["train.precision=bf16", "train.gpus=2"]
#: All that changes what the optimizer keeps, and where.
OTHERWISE = [
    "train.fusions=[adam]",
    "train.gradient_precision=bf16",
    "train.moment_precision=bf16",
    "train.overlap_communication=true",
]


def as_on_gpus(folder, *overrides, how="1"):
    return train(folder, *BF16, *overrides, ranks=2, AS_ON_GPUS=how)


def resumed(folder, source, *overrides, how="1"):
    """What a training writes that resumes the one of a folder after half of its steps."""
    shutil.copytree(source, folder, symlinks=True)
    for checkpoint in (folder / "train/checkpoints").glob("step=3*"):
        checkpoint.unlink() if checkpoint.is_symlink() else shutil.rmtree(checkpoint)
    (folder / "train/metrics.jsonl").unlink()
    return as_on_gpus(folder, *overrides, how=how)


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
    """With PyTorch's AdamW, with that in one pass, and resumed with the former from the latter.

    Weights in float32 and moments are in the right places, whichever buckets they were saved from.
    """
    plain = as_on_gpus(tmp_path / "plain", "train.fusions=[]")
    assert plain[-1]["validation_loss"] < 10  # it learns
    fused = as_on_gpus(tmp_path / "fused", *OTHERWISE)
    assert_close(fused, plain)
    half = next(n for n, row in enumerate(plain) if row["step"] == 3)
    # What is saved is all that there is, wherever it resumes; and any layout reads it.
    rows = resumed(tmp_path / "same", tmp_path / "fused", *OTHERWISE, how=WITH_TRANSFORMER_ENGINE)
    assert numbers(rows) == numbers(fused[half:])
    rows = resumed(
        tmp_path / "other", tmp_path / "fused", "train.fusions=[]", "train.tensor_parallel=2"
    )
    assert_close(rows, fused[half:])
