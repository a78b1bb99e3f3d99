"""Recipes: what to prepare and train, one YAML file each, typed and checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import model_validator

from cosmos_hpc.config.sections import Data, Train
from cosmos_hpc.config.tasks import TASKS, Note, Task, TaskName, set_wrongly
from cosmos_hpc.data.lists import Row
from cosmos_hpc.data.tokens import NUM_IDS
from cosmos_hpc.data.videos import ignore
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import Architecture, ModelConfig
from cosmos_hpc.utils.settings import (
    Section,
    apply_overrides,
    load_mapping,
    merge,
    nearest,
    setting,
    validate,
)


class Recipe(Section):
    """Everything that decides what a run computes.

    Attributes:
        name: of the recipe; follows from the file.
        description: one line for the list of recipes.
        task: what the model is asked to do, one of :data:`cosmos_hpc.config.tasks.TASKS`.
    """

    name: str
    description: str = ""
    task: TaskName = "video"
    model: Architecture
    data: Data
    train: Train

    @property
    def kind(self) -> Task:
        """The row of the task."""
        return TASKS[self.task]

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        parallel = self.train.tensor_parallel or 1
        name = self.model.splits(parallel)
        if name:
            raise ValueError(
                f"train.tensor_parallel={parallel} does not divide model.{name}="
                f"{getattr(self.model, name)}"
            )
        if min(self.model.vocab_size, self.model.output_vocab_size) < NUM_IDS:
            raise ValueError(f"model.vocab_size and output_vocab_size must hold {NUM_IDS} ids")
        wrong = set_wrongly(self.kind, lambda key: setting(self, key))
        if wrong:
            raise ValueError(wrong)
        self.kind.check(self.data)
        if self.train.condition_frames and self.kind.latent_frames:
            raise ValueError(f"train.condition_frames does not go with task={self.task}")
        self.train.check(self.model, self.data)
        sequence = self.model_for_clips().sequence_length
        if self.train.sequence_parallel and self.train.tensor_parallel == 1:
            raise ValueError("train.sequence_parallel needs train.tensor_parallel above 1")
        if self.train.sequence_parallel and sequence % parallel:
            raise ValueError(
                f"train.sequence_parallel: train.tensor_parallel={parallel} does not divide the "
                f"{sequence} inputs of a sample"
            )
        return self

    def model_for_clips(self) -> ModelConfig:
        """The architecture with the latent shape that follows from the data and the task."""
        frames, rows, columns = self.data.latent_shape
        frames = self.kind.latent_frames or frames
        return ModelConfig(**self.model.model_dump(), latent_shape=(frames, rows, columns))


def list_rows(recipe: Recipe, note: Note = ignore) -> tuple[str, list[Row]]:
    """What a run prepares: the folder that paths are relative to, and a row a video.

    A row has a ``path`` and what goes with it: a ``prompt`` for task ``video2world``, an
    ``annotation`` for task ``action``, a ``part`` where the input itself is divided.

    Args:
        recipe: with its ``data.input``.
        note: is told in a sentence what a person should know of the list.

    Raises:
        RequestError: the input is not there, is not what the task needs, or lacks prompts.
    """
    return recipe.kind.rows(str(recipe.data.input), note)


def recipes_folder() -> Path:
    """Where the shipped recipes lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(p for p in (package / "recipe_files", package.parent / "recipes") if p.is_dir())


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(p.stem for p in recipes_folder().glob("*.yaml"))


def _read(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe file as plain data, on top of the recipe that its ``base`` names."""
    if name in above:
        raise RequestError(f"recipe {name} is its own base, through {' and '.join(above)}")
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else recipes_folder() / f"{name}.yaml"
    if not own and name not in recipe_names():
        known = recipe_names()
        hint = nearest(name, known) or f"; there are {', '.join(known)}"
        raise RequestError(f"unknown recipe {name!r}{hint}")
    data = load_mapping(path)
    base = data.pop("base", None)
    data["name"] = path.stem
    return merge(_read(str(base), (*above, name)), data) if base else data


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name, or by path when it ends in ``.yaml``, with ``key=value`` overrides.

    Raises:
        RequestError: no such recipe, an unknown key, a wrong type or an impossible size.
    """
    data = apply_overrides(_read(name), overrides, Recipe)
    return validate(Recipe, data, f"recipe {data['name']}")
