"""The report stage."""

from __future__ import annotations

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.runs.completion import subject_of
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files


def report(run: RunFolder, recipe: Recipe, task: int = 0) -> None:
    files.write_json(marker_path(run, "report"), {"of": subject_of(run, recipe)})
