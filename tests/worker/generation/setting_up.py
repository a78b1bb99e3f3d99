"""Weights of small models, and runs that generate from them without a training."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.models.shapes import published_shapes
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.worker.stages.generate import generate
from tests.worker import make_videos
from tests.worker.preparing import planned, prepared

SMALL = (
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.ffn_hidden_size=48",
    "data.height=32",
    "data.width=64",
)


def weights_file(path: Path, recipe: Recipe, seed: int = 0) -> Path:
    """Random published weights of a recipe's model."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.ones(shape)
        if len(shape) == 1 and "norm" in name
        # Large enough that logits differ, and samples with them.
        else torch.randn(shape, generator=generator) * 0.1
        for name, shape in published_shapes(recipe.model).items()
    }
    save_file(weights, path)
    return path


def generating(folder: Path, base: str, *overrides: str) -> tuple[RunFolder, Recipe]:
    """A run that is ready to generate from random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    if not weights.exists():
        weights_file(weights, load_recipe(base, SMALL))
    return planned(folder / "run", base, *SMALL, f"train.init_from={weights}", *overrides, shards=1)


def trained(folder: Path, base: str, *overrides: str) -> tuple[RunFolder, Recipe]:
    """A run with tokens whose training is said to have ended with random weights."""
    run = prepared(folder / "run", base, *SMALL, *overrides, shards=2)
    recipe = run.recipe()
    weights_file(run.path / "weights.safetensors", recipe)
    files.write_json(
        marker_path(run, "train"),
        {"steps": recipe.train.max_steps, "checkpoint": "weights.safetensors"},
    )
    return run, recipe


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (80, 60)) -> Path:
    """A picture of noise."""
    channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size[::-1], *channels))
    Image.fromarray(pixels.astype(np.uint8), mode).save(path)
    return path


def video(path: Path, frames: int, seed: int = 0) -> Path:
    """A video of the test's own, not compressed visibly."""
    make_videos.write(path, make_videos.frames(frames, 32, 64, seed=seed))
    return path


def tokens_of(run: RunFolder, key: str) -> torch.Tensor:
    """int32 ``[clips, T', H', W']`` of a sample."""
    return load_file(run.generated.tokens(key))["tokens"]


def all_tokens(run: RunFolder) -> dict[str, bytes]:
    """Tokens of every sample, by its key."""
    return {path.stem: path.read_bytes() for path in run.generated.path.glob("*.safetensors")}


def shown(path: Path) -> np.ndarray:
    """Frames of a video, uint8 ``[T, H, W, 3]``."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def run_all(run: RunFolder, recipe: Recipe) -> None:
    """All tasks of the stage, in this process."""
    for task in range(recipe.generate.tasks or 1):
        generate(run, recipe, task)
