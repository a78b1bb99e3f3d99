"""The tasks: what a model is asked to do, and for each what a sample is and who prepares it.

A new task is a row here and its own files. Work that needs torch is named
as ``module:function`` and imported by the job that does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from cosmos_hpc.config.sections import Data
from cosmos_hpc.data.tokens import TEXT_POSITIONS
from cosmos_hpc.data.wanted import Note, Row, Wanted
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.utils.settings import defaults

#: Frames of a robot's clip, about as many as the longest of Bridge have.
_ROBOT_FRAMES = 60


class Task(Struct, frozen=True):
    """What a model is asked to do.

    Attributes:
        name: as recipes say it.
        samples: what its samples are called.
        settings: of the recipe, which must be set for this task, and must not be for those that do
            not name them.
        from_data: those of them that a recipe may leave to the data.
        check: raises a ValueError for data that it cannot use.
        rows: lists ``data.input``: the folder that paths are relative to, and one row per video.
        shard: class that prepares a shard, ``module:class``.
        training: makes training samples, ``module:function``.
        before_shard: what a shard needs before its videos are decoded, ``module:function``.
        files: writes what the training reads beside the ids, ``module:function``.
        file_bytes: of those files at most, of one video.
        latent_frames: latent frames of a sample; None: those of a clip.
        generator: makes generated samples, ``module:class``.
        by_steps: a generated sample is one frame after the other, each from an action.
    """

    name: str
    samples: str
    check: Callable[[Data], None]
    rows: Callable[[Data, Note], tuple[str, list[Row]]]
    training: str
    generator: str = "cosmos_hpc.worker.generation.clips:Clips"
    by_steps: bool = False
    shard: str = "cosmos_hpc.worker.datasets.shard:VideoShard"
    settings: tuple[str, ...] = ()
    from_data: tuple[str, ...] = ()
    before_shard: str | None = None
    files: str | None = None
    file_bytes: Callable[[Data, ModelConfig], int] = lambda data, model: 0
    latent_frames: int | None = None


def wanted(data: Data, *, actions: bool = False, prompts: bool = False) -> Wanted:
    """What a recipe wants of its input."""
    return Wanted(
        input=str(data.input),
        camera=data.camera,
        episodes=data.episodes,
        frame_rate=data.frame_rate,
        action=data.action if actions else None,
        normalize_action=data.normalize_action if actions else "none",
        prompts=prompts,
        by_content=data.same_files == "content",
    )


def _listed(data: Data, note: Note, **what: bool) -> tuple[str, list[Row]]:
    # Imported where an input is listed: most commands read none.
    from cosmos_hpc.data.sources import list_source

    return list_source(wanted(data, **what), note)


def _rows(data: Data, note: Note) -> tuple[str, list[Row]]:
    return _listed(data, note)


def _robot_rows(data: Data, note: Note) -> tuple[str, list[Row]]:
    return _listed(data, note, actions=True)


def _captioned_rows(data: Data, note: Note) -> tuple[str, list[Row]]:
    """Videos with prompts: of a list, or the instructions of robot clips."""
    root, rows = _listed(data, note, prompts=True)
    without = [
        row for row in rows if "error" not in row and not str(row.get("prompt") or "").strip()
    ]
    if without:
        from cosmos_hpc.data.lists import first_without

        line = first_without(str(data.input), "prompt")
        where = f"{without[0]['path']!r}{f' in {line}' if line else ''}"
        raise RequestError(
            f"data.input={data.input} has {len(without)} of {len(rows)} videos without a prompt, "
            f"the first is {where}; task video2world takes a list with a prompt of "
            f"each video, a LeRobot data set, or a folder in the Bridge layout"
        )
    return root, rows


def _captioned_bytes(data: Data, model: ModelConfig) -> int:
    """Ids of 32 bits, and a bf16 embedding if all prompts differ."""
    return model.sequence_length * 4 + TEXT_POSITIONS * (model.context_width or 0) * 2


def _robot_bytes(data: Data, model: ModelConfig) -> int:
    """Ids of every frame, in shards and joined of 16 bits and in the files of 32."""
    return _ROBOT_FRAMES * data.ids_per_clip * (2 + 2 + 4)


def _no_actions(data: Data) -> None:
    usual = defaults(Data)
    for key in ("action", "normalize_action"):
        if getattr(data, key) != usual[key]:
            raise ValueError(f"data.{key} goes with task=action, and only with it")


def _every_frame(data: Data) -> None:
    """Actions go with every frame of a video, each of which is tokenized alone."""
    if data.frames != 1:
        raise ValueError(
            f"data.frames={data.frames}: task=action takes frames one at a time, set 1"
        )
    usual = defaults(Data)
    for key in ("clips", "start", "stride"):
        if getattr(data, key) != usual[key]:
            raise ValueError(
                f"data.{key} does not go with task=action, whose actions go with every frame"
            )


TASKS = {
    task.name: task
    for task in (
        # Continues a video.
        Task(
            "video",
            samples="clips",
            check=_no_actions,
            rows=_rows,
            training="cosmos_hpc.worker.datasets.sources:clips",
        ),
        # Continues a video, from a text as well.
        Task(
            "video2world",
            samples="clips",
            settings=("model.context_width", "model.pad_to_multiple_of", "data.text_encoder"),
            check=_no_actions,
            rows=_captioned_rows,
            before_shard="cosmos_hpc.worker.tokenizers.texts:encode_prompts",
            files="cosmos_hpc.worker.datasets.video2world:write_samples",
            file_bytes=_captioned_bytes,
            training="cosmos_hpc.worker.datasets.sources:text_clips",
        ),
        # Gives the next frame, from a frame and a robot's action.
        Task(
            "action",
            samples="pairs of frames",
            settings=("model.context_width", "model.action_width", "model.pad_to_multiple_of"),
            check=_every_frame,
            from_data=("model.action_width",),
            rows=_robot_rows,
            shard="cosmos_hpc.worker.datasets.robots:RobotShard",
            files="cosmos_hpc.worker.datasets.robots:write_robot_files",
            file_bytes=_robot_bytes,
            training="cosmos_hpc.worker.datasets.sources:frame_pairs",
            generator="cosmos_hpc.worker.generation.rollouts:Rollouts",
            by_steps=True,
            latent_frames=2,
        ),
    )
}

if TYPE_CHECKING:
    TaskName = str
else:
    #: The name of a task, as a setting.
    TaskName = Literal[tuple(TASKS)]


def set_wrongly(task: Task, value: Callable[[str], Any]) -> str | None:
    """What is wrong with the settings that go with some tasks only; None where nothing is.

    Args:
        task: of the recipe.
        value: of a setting of the recipe by its dotted name.
    """
    for key in dict.fromkeys(key for other in TASKS.values() for key in other.settings):
        if value(key) is None and key in task.from_data:
            continue
        if (value(key) is not None) != (key in task.settings):
            names = [f"task={other.name}" for other in TASKS.values() if key in other.settings]
            only = "them" if len(names) > 1 else "it"
            return f"{key} goes with {' and '.join(names)}, and only with {only}"
    return None
