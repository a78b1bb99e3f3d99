"""Trains ar_tiny on random ids in the process that runs it; the tests that import it start that."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.models.shapes import published_shapes
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.samples import SampleDataset
from tests.ranks import run_ranks

SMALL = (
    "train.max_steps=4",
    "train.save_every=2",
    "train.validate_every=2",
    "train.global_batch_size=4",
    "train.micro_batch_size=2",
    "data.height=32",
    "data.width=32",
)


#: A value of ``AS_ON_GPUS``.
WITH_TRANSFORMER_ENGINE = "with Transformer Engine"


def recipe_of(overrides: list[str]) -> Recipe:
    return load_recipe("ar_tiny", [*SMALL, *overrides])


def write_weights(path: Path) -> None:
    """Random weights of ar_tiny by published names."""
    model = load_recipe("ar_tiny").model
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / 50
        for name, shape in published_shapes(model).items()
    }
    torch.save(weights, path)


class RandomClips(SampleDataset):
    """The same for the same index, of few different ids, which can be learnt."""

    def __init__(self, recipe: Recipe, length: int, first: int = 0) -> None:
        self.ids, self.length, self.first = recipe.data.ids_per_clip, length, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.first + index)
        ids = torch.randint(0, 10, (self.ids,), generator=generator)
        mask = torch.ones(self.ids)
        mask[-1] = 0
        return {"tokens": ids, "labels": ids.roll(-1), "loss_mask": mask}


def validation_clips(recipe: Recipe) -> RandomClips:
    train = recipe.train
    return RandomClips(recipe, train.validation_batches * train.global_batch_size, 1000)


def train(folder: Path, *overrides: str, ranks: int = 1, **env: str) -> list[dict]:
    """Train in a folder, from the last checkpoint in it; the rows of its metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "run.json", {"id": "x"})
    arguments = ("tests.worker.training.fit", str(folder), *overrides)
    done = run_ranks(folder, *arguments, ranks=ranks, env={"WANDB_MODE": "disabled", **env})
    assert done.succeeded, done.log[-5000:]
    (folder / "log").write_text(done.log)
    return files.read_jsonl(RunFolder(folder).train.metrics)


def as_on_gpus(recipe: Recipe) -> None:
    """Train with Megatron's distributed optimizer, and where it is asked for with fused AdamW.

    Communication that overlaps is in buckets of few parameters. Without GPUs AdamW is not compiled,
    and kernels of layers stay those of a CPU. If asked to, Megatron behaves as with Transformer
    Engine installed.
    """
    from megatron.core import optimizer as megatron_optimizer
    from megatron.core.optimizer import distrib_optimizer

    from cosmos_hpc.worker.training import nemo
    from cosmos_hpc.worker.training.optimizer_state import keep_by_parameter

    if os.environ["AS_ON_GPUS"] == WITH_TRANSFORMER_ENGINE:
        megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
        distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_TE_OPTIMIZER = True
    optimizer, ddp = nemo._optimizer, nemo.DistributedDataParallelConfig
    overlap = recipe.train.overlap_communication
    overlaps = {"overlap_grad_reduce": overlap, "overlap_param_gather": overlap}
    nemo._optimizer = lambda recipe, cpu, **settings: optimizer(recipe, False, **settings)
    nemo.DistributedDataParallelConfig = lambda **settings: ddp(
        **{**settings, **overlaps, "bucket_size": 50_000}
    )
    if torch.cuda.is_available():
        return
    nemo.choose_fusions = list
    nemo.fuse = lambda config, fusions: None
    keep_by_parameter()
    torch.compiler.set_stance("force_eager")


def main(folder: str, overrides: list[str]) -> None:
    from cosmos_hpc.worker.children import let_managers_end_with_this_process
    from cosmos_hpc.worker.stages.train import prepare_device
    from cosmos_hpc.worker.training import loggers, nemo
    from cosmos_hpc.worker.training.checkpoints import latest_checkpoint
    from cosmos_hpc.worker.training.data import ClipData
    from cosmos_hpc.worker.training.metrics import MetricsFile

    prepare_device()
    let_managers_end_with_this_process()
    recipe, run = recipe_of(overrides), RunFolder(folder)
    if "AS_ON_GPUS" in os.environ:
        as_on_gpus(recipe)
    settings, start = recipe.train, recipe.train.init_from
    latest = latest_checkpoint(run.train.checkpoints)
    clips = RandomClips(recipe, settings.max_steps * settings.global_batch_size)
    tokens = settings.global_batch_size * recipe.data.ids_per_clip
    reference = {"untrained": 11.07, "unigram": 2.3}
    metrics = MetricsFile(
        run.train.metrics, run.train.loss_curve, reference, tokens, starts_trained=bool(start)
    )
    nemo.fit(
        recipe,
        ClipData(clips, validation_clips(recipe), recipe),
        [metrics],
        loggers.run_logger(run, recipe, validates=True),
        checkpoint=latest[1] if latest else None,
        initial_weights=Path(start) if start else None,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
