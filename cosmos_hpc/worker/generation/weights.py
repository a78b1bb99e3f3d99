"""The weights of a run's samples and scores: those after the training and before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.loading import load_decoder, random_decoder
from cosmos_hpc.runs.fetched import initial_weights
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import say
from cosmos_hpc.worker.generation.items import WeightsName


@dataclass(frozen=True)
class RunWeights:
    """Weights that a run names.

    Attributes:
        path: of the checkpoint; None for random ones.
        step: of the training; None for those that it began from.
    """

    path: Path | None
    step: int | None = None

    def name(self, run: RunFolder) -> str:
        """The path, relative to the run folder where it is in it."""
        if self.path is None:
            return "random weights"
        inside = self.path.is_relative_to(run.path)
        return str(self.path.relative_to(run.path) if inside else self.path)


def weights_of(run: RunFolder, recipe: Recipe, which: WeightsName) -> RunWeights:
    """Where a run's weights are.

    Raises:
        WorkError: its training, or its download stage, is not done.
    """
    if which == "initial" or not recipe.trains:
        return RunWeights(initial_weights(run, recipe))
    marker = files.read_json(run.train.done)
    if marker is None:
        raise WorkError(f"run {run.name} has no trained weights yet: its train stage is not done")
    return RunWeights(run.path / marker["checkpoint"], marker["steps"])


def open_decoder(run: RunFolder, recipe: Recipe, which: WeightsName) -> CosmosDecoder:
    """A decoder with a run's weights, on this task's GPU or on the CPU.

    In bf16 on a GPU where the training is, else in float32.

    Raises:
        WorkError: the weights cannot be loaded.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = device.type == "cuda" and recipe.train.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    weights, model = weights_of(run, recipe, which), recipe.model_for_clips()
    say(f"loading {weights.name(run)}")
    if weights.path is None:
        return random_decoder(model, device, dtype, recipe.train.seed)
    try:
        return load_decoder(weights.path, model, device, dtype)
    except RequestError as e:
        raise WorkError(str(e)) from None
