"""Recipes: what to prepare and train, one YAML file each, typed and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import ClassVar

from msgspec.structs import asdict, replace

from cosmos_hpc.config.generation import Evaluate, Generate
from cosmos_hpc.config.recipe_files import read_recipe
from cosmos_hpc.config.sections import Data, Train
from cosmos_hpc.config.synonyms import SYNONYMS
from cosmos_hpc.config.tasks import TASKS, Task, TaskName, set_wrongly, wanted
from cosmos_hpc.data.tokens import NUM_IDS
from cosmos_hpc.data.wanted import Note, Row, ignore
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import Architecture, ModelConfig
from cosmos_hpc.utils.html import folded, table
from cosmos_hpc.utils.mappings import flatten
from cosmos_hpc.utils.settings import (
    Section,
    Synonym,
    apply_overrides,
    dump_yaml,
    setting,
    validate,
)


class Recipe(Section, frozen=True, kw_only=True):
    """Everything that decides what a run computes.

    Attributes:
        name: name of the recipe, which follows from that of its file.
        description: a line that the list of recipes shows.
        task: what tells the model, beside the frames before, which frames come next: nothing
            (``video``), a text (``video2world``) or a robot's actions (``action``).
        model: the architecture; published weights fit only that of their recipe.
        data: videos, and how they become clips of tokens.
        train: the post-training.
        generate: samples, which are made after the training, or from an input of its own.
        evaluate: scores, which are computed after the training.
    """

    synonyms: ClassVar[Mapping[str, Synonym]] = SYNONYMS
    default_words: ClassVar[Mapping[str, str]] = {"name": "follows from the file"}

    name: str
    description: str = ""
    task: TaskName = "video"
    model: Architecture
    data: Data
    train: Train
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()

    def __repr__(self) -> str:
        return dump_yaml(self).rstrip()

    def __str__(self) -> str:  # msgspec has one of its own
        return repr(self)

    def _repr_html_(self) -> str:
        head, parts = [], []
        for name, value in self.as_dict().items():
            if isinstance(value, dict):
                rows = ((key, json.dumps(inner)) for key, inner in flatten(value).items())
                parts.append(folded(name, table((), rows)))
            elif value:
                head.append((name, value))
        return table((), head) + "".join(parts)

    @property
    def trains(self) -> bool:
        """Whether runs of it train; others generate from an input of its own."""
        return self.generate.input is None

    @property
    def given_frames(self) -> int:
        """True frames that a generated sample begins with."""
        if self.kind.by_steps:
            return 1
        return self.generate.given_frames(self.data.frames, self.data.compression[0])

    @property
    def overlap_frames(self) -> int:
        """Frames at the end of a generated clip that are the condition of a next one."""
        if self.kind.by_steps:
            return 0
        return Generate().given_frames(self.data.frames, self.data.compression[0])

    @property
    def kind(self) -> Task:
        """The row of the task."""
        return TASKS[self.task]

    def _fits_together(self) -> None:
        if min(self.model.vocab_size, self.model.output_vocab_size) < NUM_IDS:
            raise ValueError(
                f"model.vocab_size and output_vocab_size must hold the {NUM_IDS} tokens"
            )
        wrong = set_wrongly(self.kind, lambda key: setting(self, key))
        if wrong:
            raise ValueError(wrong)
        self.kind.check(self.data)
        self._check_generation()
        if self.train.condition_frames and self.kind.latent_frames:
            raise ValueError(f"train.condition_frames does not go with task={self.task}")
        self.train.check(self.model, self.data)
        self._check_layout()

    def _check_layout(self) -> None:
        train, model = self.train, self.model_for_clips()
        tensor, context = train.tensor_parallel or 1, train.context_parallel or 1
        factors = both = f"train.tensor_parallel={tensor}"
        if context > 1:
            both += f" times train.context_parallel={context}"
        if name := model.splits(tensor, context):
            # Only heads are shared by the ranks of context parallelism.
            factors = both if name == "num_query_groups" else factors
            raise ValueError(f"{factors} does not divide model.{name}={getattr(model, name)}")
        if train.sequence_parallel and train.tensor_parallel == 1:
            raise ValueError("train.sequence_parallel needs train.tensor_parallel above 1")
        sequence = model.sequence_length
        if sequence % context:
            raise ValueError(
                f"train.context_parallel={context} does not divide the {sequence} inputs of a "
                f"sample"
            )
        if train.sequence_parallel and sequence % (tensor * context):
            raise ValueError(
                f"train.sequence_parallel: {both} does not divide the {sequence} inputs of a sample"
            )

    def _check_generation(self) -> None:
        generate, task = self.generate, self.kind
        try:
            given = self.given_frames
        except ValueError as e:
            raise ValueError(f"generate.{e}") from None
        frames = generate.frames
        if frames is not None and frames <= given:
            raise ValueError(f"generate.frames={frames} leaves nothing after {given} given frames")
        if not self.trains and not given:
            raise ValueError(f"data.frames={self.data.frames} leaves no frame to generate")
        if generate.prompt is not None and not self.data.text_encoder:
            raise ValueError(f"generate.prompt: models of task={self.task} read no text")
        if generate.actions is not None and not task.by_steps:
            raise ValueError(f"generate.actions: models of task={self.task} take no actions")
        for name in ("frames", "seconds", "condition_frames"):
            if task.by_steps and getattr(generate, name) is not None:
                raise ValueError(
                    f"generate.{name} does not go with task={self.task}: a sample is the first "
                    f"frame, and one more for each action"
                )

    def model_for_clips(self) -> ModelConfig:
        """The architecture with the latent shape that follows from the data and the task."""
        frames, rows, columns = self.data.latent_shape
        frames = self.kind.latent_frames or frames
        return ModelConfig(**asdict(self.model), latent_shape=(frames, rows, columns))


def list_input(recipe: Recipe, note: Note = ignore) -> tuple[str, list[Row]]:
    """What a run prepares, or generates from: the folder of relative paths, and one row per video.

    A row has a ``path`` and what goes with it: a ``prompt`` for task ``video2world``, where to find
    its actions for task ``action``, a ``part`` where the input itself is divided.

    Args:
        recipe: with its ``data.input``.
        note: called with sentences about the list for the user.

    Raises:
        RequestError: the input is not there, is not what the task needs, or lacks prompts.
    """
    generate = recipe.generate
    if generate.input is None:
        return recipe.kind.rows(recipe.data, note)
    from cosmos_hpc.data.inputs import list_inputs

    needs = "actions" if recipe.kind.by_steps else "prompt" if recipe.data.text_encoder else None
    given = generate.actions if recipe.kind.by_steps else generate.prompt
    return list_inputs(generate.input, note, needs=needs, given=given)


def fitted_to_data(recipe: Recipe) -> Recipe:
    """The recipe with what it leaves to its data: the width of actions.

    Raises:
        RequestError: the data has no actions, or they have another width than the recipe says.
    """
    width = recipe.model.action_width
    if "model.action_width" not in recipe.kind.settings or recipe.data.input is None:
        return recipe
    from cosmos_hpc.data.sources import with_actions

    source = with_actions(recipe.data.input)
    if width is not None and not source.one_width:
        return recipe  # each clip is checked when it is read
    assert source.action_width is not None
    found = source.action_width(wanted(recipe.data, actions=True))
    if width is None:
        model = replace(recipe.model, action_width=found)
        return replace(recipe, model=model)
    if width != found:
        raise RequestError(
            f"an action of data.input={recipe.data.input} has {found} numbers, and "
            f"model.action_width is {width}; set model.action_width={found}, or null to take that "
            f"of the data"
        )
    return recipe


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name, or by path when it ends in ``.yaml``, with ``key=value`` overrides.

    Raises:
        RequestError: no such recipe, an unknown key, a wrong type or an impossible size.
    """
    data = apply_overrides(read_recipe(name), overrides, Recipe)
    return validate(Recipe, data, f"recipe {data['name']}")
