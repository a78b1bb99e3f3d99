"""Where the download stage has put what other stages read."""

from __future__ import annotations

from pathlib import Path

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import WorkError
from cosmos_hpc.hub.needs import is_hub_name
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files


def tokenizer_folder(run: RunFolder) -> Path:
    """Where the download stage put ``encoder.jit`` and ``decoder.jit``.

    Raises:
        WorkError: the stage has not run.
    """
    found = files.read_json(marker_path(run, "download"))
    if found is None:
        raise WorkError(f"run {run.name} has no tokenizer yet: its download stage has not run")
    return run.tokenizer / found["folder"]


def text_encoder_folder(run: RunFolder) -> Path:
    """Where the download stage put the text encoder.

    Raises:
        WorkError: the stage has not run, or not for a recipe with texts.
    """
    found = files.read_json(marker_path(run, "download"))
    if found is None or not found.get("text_encoder"):
        raise WorkError(f"run {run.name} has no text encoder yet: its download stage has not run")
    return run.tokenizer / found["text_encoder"]


def initial_weights(run: RunFolder, recipe: Recipe) -> Path | None:
    """The checkpoint that training starts from: a fetched folder, or the path in the recipe.

    Returns:
        Its path; None for random weights.

    Raises:
        WorkError: it is published on the Hub, and the download stage has not fetched it.
    """
    start = recipe.train.init_from
    found = files.read_json(marker_path(run, "download"))
    # Markers of earlier versions say nothing of weights.
    if found and found.get("init_from"):
        return Path(found["init_from"])
    if start and is_hub_name(start):
        raise WorkError(f"run {run.name} has no {start} yet: its download stage has not run")
    return Path(start) if start else None
