"""The stages of a run: one table, and what is still to do of each.

A new stage is a row here, a file in ``worker/stages``, and what its settings need in the recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs import completion
from cosmos_hpc.runs import pace as paces
from cosmos_hpc.runs import progress as words
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.progress import HowFar
from cosmos_hpc.runs.snapshots import LAUNCHER
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import nearest, setting


class Stage(Struct, frozen=True):
    """A stage, whatever the run.

    Attributes:
        name: as people type it.
        work: function of a run, its recipe and a task's number that does a task, as
            ``module:function``: only the job that does it imports it.
        marker: file below the run folder that a task leaves when it is done; ``%05d`` stands for
            the number of the task.
        libraries: what it imports, each with the extra of this package that brings it.
        after: the stages whose results it needs.
        array: several tasks, instead of one.
        tasks: setting of the recipe that says how many tasks an array has; None: one per shard.
        part_of: whether runs of a recipe have it.
        gpus: whether it works on GPUs where there are any.
        ranks: setting of the recipe that says how many processes a task has; None: one.
        time: limit of a job where the cluster has limits, ``HH:MM:SS``.
        sources: settings of the recipe that name files, folders or repositories it reads.
        is_done: whether a task's results are complete: run, recipe, marker's path, task.
        progress: how far it is: run, markers of its tasks; of an array, of those that may be there.
        pace: when a task that is worked on last got on: run, stage, task.
        results: paths of what it has made for people, by what it is: run, marker.
        optional: carried out only where it is asked for by its name.
        looks_back: makes nothing that the run is for, but shows what that is worth.
        takes_what_there_is: need not wait for the results of the stages before it to exist.
        stops_anywhere: left as soon as that is asked for, not at a safe point: everywhere is one.
    """

    name: str
    work: str
    marker: str
    libraries: dict[str, str]
    after: tuple[str, ...] = ()
    array: bool = False
    tasks: str | None = None
    part_of: Callable[[Recipe], bool] = lambda recipe: True
    gpus: bool = False
    ranks: str | None = None
    time: str = "02:00:00"
    sources: tuple[str, ...] = ()
    is_done: Callable[[RunFolder, Recipe, Path, int], bool] = completion.marked
    progress: Callable[[RunFolder, Sequence[Path]], HowFar] = words.nothing
    pace: Callable[[RunFolder, str, int], paces.Pace | None] = paces.of_log
    results: Callable[[RunFolder, Path], dict[str, Path]] = words.no_results
    optional: bool = False
    looks_back: bool = False
    takes_what_there_is: bool = False
    stops_anywhere: bool = False

    def marker_of(self, task: int) -> str:
        """The marker of a task, relative to the run folder."""
        return self.marker % task if self.array else self.marker

    def label(self, task: int) -> str:
        """Names a task: ``STAGE``, or ``STAGE.TASK`` of an array."""
        return f"{self.name}.{task}" if self.array else self.name


def _trains(recipe: Recipe) -> bool:
    """Whether a run prepares data and trains on it, instead of only generating."""
    return recipe.trains


def _generates(recipe: Recipe) -> bool:
    """Whether a run generates samples."""
    return recipe.generate.tasks != 0


def _scores(recipe: Recipe) -> bool:
    """Whether a run has samples of clips whose continuation is known."""
    return _trains(recipe) and _generates(recipe)


#: Each after the ones that it depends on.
STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "download",
            work="cosmos_hpc.worker.stages.download:download",
            marker="tokenizer/done.json",
            libraries={"torch": "worker"},
            sources=("data.tokenizer", "data.text_encoder", "train.init_from"),
            stops_anywhere=True,
        ),
        Stage(
            "preprocess",
            part_of=_trains,
            work="cosmos_hpc.worker.stages.preprocess:preprocess",
            marker="tokens/shards/%05d/done.json",
            libraries={"av": "worker"},
            after=("download",),
            array=True,
            gpus=True,
            time="04:00:00",
            sources=("data.input",),
            is_done=completion.shard_is_done,
            progress=words.preprocess,
            pace=paces.of_shard,
        ),
        Stage(
            "finalize",
            part_of=_trains,
            work="cosmos_hpc.worker.stages.finalize:finalize",
            marker="tokens/done.json",
            libraries={"megatron": "worker"},
            after=("preprocess",),
            is_done=completion.finalize_is_done,
            progress=words.finalize,
            stops_anywhere=True,
        ),
        Stage(
            "train",
            part_of=_trains,
            work="cosmos_hpc.worker.stages.train:train",
            marker="train/done.json",
            libraries={"nemo": "train"},
            after=("finalize",),
            gpus=True,
            ranks="train.gpus",
            time="04:00:00",
            is_done=completion.train_is_done,
            progress=words.train,
            pace=paces.of_training,
            results=words.train_results,
        ),
        Stage(
            "generate",
            looks_back=True,
            part_of=_generates,
            work="cosmos_hpc.worker.stages.generate:generate",
            marker="generated/tasks/%05d.json",
            libraries={"megatron": "worker", "safetensors": "worker", "PIL": "worker"},
            after=("train",),
            array=True,
            tasks="generate.tasks",
            gpus=True,
            time="04:00:00",
            sources=("generate.input", "generate.actions", "generate.action_stats"),
            is_done=completion.generate_is_done,
            progress=words.generate,
            results=words.generate_results,
            stops_anywhere=True,
        ),
        Stage(
            "evaluate",
            looks_back=True,
            part_of=_scores,
            work="cosmos_hpc.worker.stages.evaluate:evaluate",
            marker="evaluation/done.json",
            libraries={"torchmetrics": "worker"},
            after=("generate",),
            gpus=True,
            is_done=completion.made_of_this,
            progress=words.evaluate,
            results=words.evaluate_results,
            stops_anywhere=True,
        ),
        Stage(
            "report",
            looks_back=True,
            takes_what_there_is=True,
            work="cosmos_hpc.worker.stages.report:report",
            marker="report/done.json",
            libraries={"jinja2": "worker", "matplotlib": "worker", "av": "worker"},
            after=("evaluate",),
            time="00:30:00",
            is_done=completion.report_is_done,
            results=words.report_results,
            stops_anywhere=True,
        ),
    )
}


def stage_named(name: str) -> Stage:
    """A row of the table.

    Raises:
        RequestError: there is no such stage; names the nearest.
    """
    if name not in STAGES:
        hint = nearest(name, STAGES) or f"; there are {', '.join(STAGES)}"
        raise RequestError(f"unknown stage {name!r}{hint}")
    return STAGES[name]


def default_stages() -> list[str]:
    """The stages that are carried out where none is named."""
    return [stage.name for stage in STAGES.values() if not stage.optional]


def absent_stages(recipe: Recipe) -> set[str]:
    """Stages that runs of a recipe do not have: others need not wait for them."""
    return {stage.name for stage in STAGES.values() if not stage.part_of(recipe)}


def needed_for(name: str) -> set[str]:
    """The stages whose results a stage needs, directly or through others."""
    direct = STAGES[name].after
    return {*direct, *(earlier for stage in direct for earlier in needed_for(stage))}


def stage_and_following(name: str) -> list[str]:
    """A stage and those that need its results, directly or through others."""
    found = [name]
    for stage in STAGES.values():
        if any(earlier in found for earlier in stage.after):
            found.append(stage.name)
    return found


def nearest_before(stage: str, has_work: Callable[[str], object]) -> list[str]:
    """The nearest stages before one that have work to wait for, along each way in the table.

    Args:
        stage: name of a stage.
        has_work: says of a name whether that stage has; ways lead through those that have none.
    """
    found: dict[str, None] = {}
    for earlier in STAGES[stage].after:
        ways = [earlier] if has_work(earlier) else nearest_before(earlier, has_work)
        found.update(dict.fromkeys(ways))
    return list(found)


def source_settings() -> list[str]:
    """Settings of a recipe that name what some stage reads outside of the run folder."""
    return list(dict.fromkeys(key for stage in STAGES.values() for key in stage.sources))


def sources_of(recipe: Recipe) -> dict[str, str]:
    """What stages of a recipe read outside of the run folder, by the setting that names it."""
    values = {key: setting(recipe, key) for key in source_settings()}
    guard = recipe.generate.guard_file
    values |= {"generate.guard": guard} if guard else {}
    return {key: str(value) for key, value in values.items() if value}


class RunStage(Struct, frozen=True):
    """A stage of a certain run.

    Attributes:
        kind: its row.
        tasks: array tasks; 1 for a single job.
        ranks: processes of a task, started by torchrun when there are several.
    """

    kind: Stage
    tasks: int = 1
    ranks: int = 1

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.kind.name


def stages_of(run: RunFolder, recipe: Recipe) -> list[RunStage]:
    """The stages of a run, in order."""
    return list_stages(run.data.num_shards(), recipe)


def list_stages(shards: int, recipe: Recipe) -> list[RunStage]:
    """The stages for a number of shards and a recipe with a layout, in order."""

    def tasks(stage: Stage) -> int:
        if not stage.array:
            return 1
        return (setting(recipe, stage.tasks) or 1) if stage.tasks else shards

    return [
        RunStage(
            stage,
            tasks=tasks(stage),
            ranks=(setting(recipe, stage.ranks) if stage.ranks else None) or 1,
        )
        for stage in STAGES.values()
        if stage.part_of(recipe)
    ]


def ask_for(run: RunFolder, names: Iterable[str]) -> None:
    """Remember that these stages were asked for, besides those of earlier submits."""
    before = (files.read_json(run.asked) or {"stages": []})["stages"]
    files.write_json(run.asked, {"stages": [s for s in STAGES if s in {*before, *names}]})


def asked_for(run: RunFolder) -> list[str]:
    """The stages that were asked for by any submit; the usual ones before the first."""
    return list((files.read_json(run.asked) or {"stages": default_stages()})["stages"])


def write_specs(run: RunFolder, recipe: Recipe) -> None:
    """Write the spec file of every stage: all that its worker needs to know."""
    for stage in STAGES:
        files.write_json(run.spec(stage), {"stage": stage, "recipe": recipe.as_dict()})


def task_script(
    run: RunFolder, stage: RunStage, task: int = 0, code: Path | None = None
) -> list[str]:
    """A Python script and its arguments that run one task of a stage on one rank.

    A script instead of a module: Python puts the script's folder first, so that the run's snapshot
    is what runs, whatever the working folder or PYTHONPATH hold.
    """
    return [str((code or run.code()) / LAUNCHER), str(run.spec(stage.name)), str(task)]


def task_command(run: RunFolder, stage: RunStage, task: int = 0) -> list[str]:
    """Command line of one task of a stage on one rank."""
    return [sys.executable, *task_script(run, stage, task)]


def marker_path(run: RunFolder, stage: str, task: int = 0) -> Path:
    """The file whose presence says that a task of a stage is done."""
    return run.path / STAGES[stage].marker_of(task)


def has_results(run: RunFolder) -> bool:
    """Whether any task is done, or has kept a part of its work."""
    markers = (stage.marker.replace("%05d", "*") for stage in STAGES.values())
    parts = (run.tokens.journal(0).parent, run.tokens.prompts, run.train.checkpoints)
    return any(any(run.path.glob(marker)) for marker in markers) or any(map(files.names_in, parts))


def is_done(run: RunFolder, recipe: Recipe, stage: str, task: int = 0) -> bool:
    """Whether a task's results are complete, by its marker on the disk."""
    return STAGES[stage].is_done(run, recipe, marker_path(run, stage, task), task)


def stage_progress(run: RunFolder, stage: RunStage) -> HowFar:
    """How far a stage is."""
    tasks = _perhaps_done(run, stage, range(stage.tasks))
    return stage.kind.progress(run, [marker_path(run, stage.name, task) for task in tasks])


def missing_tasks(
    run: RunFolder, recipe: Recipe, stage: RunStage, only: Sequence[int] | None = None
) -> list[int]:
    """Tasks of a stage that are not done, of all or of ``only`` some."""
    tasks = range(stage.tasks) if only is None else only
    there = _perhaps_done(run, stage, tasks)
    done = {task for task in there if is_done(run, recipe, stage.name, task)}
    return [task for task in tasks if task not in done]


def _perhaps_done(run: RunFolder, stage: RunStage, tasks: Sequence[int]) -> Sequence[int]:
    """Tasks that may have left a marker, by one look at a folder instead of one for each task."""
    if not stage.kind.array:
        return tasks
    parts = stage.kind.marker.split("/")
    at = next(number for number, part in enumerate(parts) if "%" in part)
    names = files.names_in(run.path.joinpath(*parts[:at]))
    return [task for task in tasks if parts[at] % task in names]
