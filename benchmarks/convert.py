"""Peak memory and speed of a conversion there and back, on random weights of a recipe's size.

    python benchmarks/convert.py FOLDER [RECIPE]

FOLDER needs room for three times the model. Peak memory is the child's maximum resident set, which
counts the pages of the mapped source file as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.models.checkpoints.published_files import PublishedWeights
from cosmos_hpc.models.checkpoints.writer import WriteJob, write_torch_file
from cosmos_hpc.models.shapes import published_shapes


class Random:
    """A tensor that is made when it is read, the same each time."""

    dtype = torch.bfloat16

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape

    def __getitem__(self, index: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        bits = torch.randint(-(2**15), 2**15, self.shape, dtype=torch.int16, generator=generator)
        return bits.view(torch.bfloat16)[index]


def convert(source: Path, target: Path, recipe: str) -> tuple[float, int]:
    """Seconds and peak bytes of a conversion in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "cosmos_hpc", "convert", source, target, f"recipe={recipe}"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main(folder: Path, recipe: str) -> None:
    """Print figures of both directions, and whether the bits come back."""
    model = load_recipe(recipe).model
    shapes = published_shapes(model)
    tensors = {name: Random(name, shape) for name, shape in shapes.items()}
    source, nemo, back = folder / "model.pt", folder / "nemo", folder / "back.pt"
    job = WriteJob(PublishedWeights(tensors, "random"), model, torch.bfloat16, lambda _: None)
    size = job.num_bytes
    print(f"{recipe}: {size / 1e9:.2f} GB", flush=True)
    write_torch_file(job, source)
    for a, b in ((source, nemo), (nemo, back)):
        seconds, peak = convert(a, b, recipe)
        print(
            f"{a.name} to {b.name}: {seconds:.0f} s, peak {peak / 1e9:.2f} GB, "
            f"{peak / size:.2f} times the model",
            flush=True,
        )
    got = torch.load(back, weights_only=True, mmap=True)
    same = all(
        torch.equal(got[n].view(torch.int16), t[...].view(torch.int16)) for n, t in tensors.items()
    )
    print(f"the same bits: {same and set(got) == set(tensors)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), (*sys.argv[2:], "ar4b")[0])
