"""NeMo-Run's own objects for the stages of a run, for people with their own experiments.

>>> import nemo_run as run
>>> from cosmos_hpc import nemo_run as cosmos
>>> with run.Experiment("mine") as experiment:                                     # doctest: +SKIP
...     experiment.add(cosmos.task("runs/x", "train"), cosmos.executor("local", "train", "runs/x"))

``cosmos-hpc submit`` does not need this module; docs/nemo-run.md says what it does beyond it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from cosmos_hpc.backends.kinds import AnyBackend, load_cluster, open_backend, read_cluster
from cosmos_hpc.backends.launch import make_request, start
from cosmos_hpc.config.clusters import BUILT_IN, Cluster
from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.config.sections import Data
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import Architecture
from cosmos_hpc.runs.folder import RunFolder, find_run
from cosmos_hpc.runs.stages import (
    STAGES,
    RunStage,
    missing_tasks,
    nearest_before,
    stage_and_following,
    stage_named,
    stages_of,
)
from cosmos_hpc.utils.console import usual_console
from cosmos_hpc.utils.imports import large_imports
from cosmos_hpc.utils.mappings import parse_yaml
from cosmos_hpc.utils.settings import Section, types_of, validate

if TYPE_CHECKING:
    from cosmos_hpc.api import Run

with large_imports(), warnings.catch_warnings():
    # Where torch is installed, NeMo-Run imports it.
    warnings.filterwarnings("ignore", message="The pynvml package is deprecated")
    import nemo_run

__all__ = ["executor", "experiment", "post_train", "preprocess", "task"]

#: The stages that prepare the tokens.
_BEFORE_TRAINING = [name for name in STAGES if name not in stage_and_following("train")]


def executor(
    cluster: str | Cluster,
    stage: str,
    run: Run | RunFolder | Path | str | None = None,
    number: int = 0,
) -> nemo_run.Executor:
    """The LocalExecutor, DockerExecutor or SlurmExecutor for a task of a stage, complete.

    Args:
        cluster: name of a profile, path of a YAML file, or a loaded profile.
        stage: name of a stage.
        run: that the task is of: its path, its name below ``runs``, or what ``submit`` returned.
            The executor then has the GPUs of its ranks, and a container sees the folders that it
            reads. None: all GPUs that the profile allows, and the folders that it names.
        number: of the task. On this machine the tasks of an array have a GPU each, which follows
            from it.

    Raises:
        RequestError: no such profile, stage, run or task, the run was prepared for another kind of
            cluster, or the cluster does not have what the stage needs.
    """
    profile = load_cluster(cluster) if isinstance(cluster, str) else cluster
    backend = open_backend(profile)
    if run is None:
        kind = stage_named(stage)
        ranks = (profile.max_gpus or 1) if kind.ranks else 1
        return backend.executor(RunStage(kind, tasks=number + 1, ranks=ranks), None, number)
    folder = _folder(run)
    prepared = _backend(folder)
    if type(prepared) is not type(backend):
        raise RequestError(
            f"run {folder.name} was prepared for cluster {prepared.cluster.name}, which is of "
            f"another kind than {profile.name}; prepare it with cluster={profile.name}"
        )
    return backend.executor(_stage(folder, stage, number), folder, number)


def task(run: Run | RunFolder | Path | str, stage: str, number: int = 0) -> nemo_run.Script:
    """A task of a stage of a run, for the executor of the run's cluster.

    A task that is done already ends at once. Making this object begins an attempt: it forgets the
    reason that an earlier one left for its failure, and a request to stop.

    Args:
        run: a run folder that ``submit(..., dry_run=True)`` or any other submit has made: its path,
            its name below ``runs``, or what ``submit`` returned.
        stage: name of a stage.
        number: of an array task, a shard; 0 for the only task of other stages.

    Raises:
        RequestError: no such run, stage or task, the cluster cannot run it, or a submit works on
            the run.
    """
    folder = _folder(run)
    _refuse_busy(folder)
    return _begin(folder, stage, number)


def _refuse_busy(run: RunFolder) -> None:
    """Refuse a run that another submit works on: its tasks would be done twice."""
    if not run.begun():
        return  # only prepared
    queue = _backend(run).queue(run)
    if queue.problem:
        raise RequestError(queue.problem)
    if queue.working:
        raise RequestError(
            f"run {run.name} is being worked on, or has jobs in the queue; wait for them, or "
            f"cosmos-hpc cancel {run.name} first"
        )


def _begin(folder: RunFolder, stage: str, number: int) -> nemo_run.Script:
    """Make a task, and delete what an earlier attempt has left."""
    made = _backend(folder).task(folder, _stage(folder, stage, number), number)
    folder.error(stage, number).unlink(missing_ok=True)
    folder.stop_request.unlink(missing_ok=True)
    return made


def experiment(
    run: Run | RunFolder | Path | str, stages: Sequence[str] = tuple(STAGES), **settings: Any
) -> nemo_run.Experiment:
    """An experiment with all missing tasks of a run, each after those that it needs.

    ``with experiment(run) as e: e.run()`` carries them out. Of the tasks of an array at most
    ``parallel`` (of the run's cluster) run at the same time: each waits for the one that many
    places before it.

    Args:
        run: see :func:`task`.
        stages: names of the stages, of those that are not done.
        settings: of :class:`nemo_run.Experiment`, such as ``log_level``. Its title is the run's
            name, without what is neither letter nor digit.

    Raises:
        RequestError: no such run or stage, or the cluster cannot run it.
    """
    folder = _folder(run)
    _refuse_busy(folder)
    recipe, cluster = folder.recipe(), read_cluster(folder.cluster_file)
    names = [stage_named(stage).name for stage in stages]
    # It becomes part of a container's host name.
    title = re.sub("[^A-Za-z0-9]", "", folder.name) or "run"
    made = nemo_run.Experiment(settings.pop("title", title), **settings)
    added: dict[str, list[str]] = {}
    with made:
        for stage in stages_of(folder, recipe):
            if stage.name not in names:
                continue
            waits_for = nearest_before(stage.name, added.get)
            before = [name for earlier in waits_for for name in added[earlier]]
            lanes: dict[int, str] = {}
            for number in missing_tasks(folder, recipe, stage):
                lane = number % cluster.parallel
                lanes[lane] = made.add(
                    _begin(folder, stage.name, number),
                    executor=executor(cluster, stage.name, folder, number),
                    name=f"{stage.name}-{number}" if stage.kind.array else stage.name,
                    dependencies=[lanes[lane]] if lane in lanes else before,
                )
                added.setdefault(stage.name, []).append(lanes[lane])
    return made


def _folder(run: Run | RunFolder | Path | str) -> RunFolder:
    """The folder of a run that exists."""
    folder = getattr(run, "folder", run)
    return find_run(str(getattr(folder, "path", folder)))


def _backend(run: RunFolder) -> AnyBackend:
    """The backend of the cluster that a run was prepared for."""
    return open_backend(read_cluster(run.cluster_file))


def _stage(run: RunFolder, name: str, number: int) -> RunStage:
    """A stage of a run that has a task of this number."""
    kind = stage_named(name)
    there = {stage.name: stage for stage in stages_of(run, run.recipe())}
    stage = there.get(name) or RunStage(kind, tasks=0)
    if not 0 <= number < stage.tasks:
        raise RequestError(
            f"there is no {name}.{number} in run {run.name}: its tasks are counted from 0 to "
            f"{stage.tasks - 1}"
        )
    return stage


def post_train(
    recipe: str = "ar_tiny", overrides: Iterable[str] = (), name: str = "", folder: str = "runs"
) -> nemo_run.Partial:
    """All stages of a recipe on the machine where this is run, from videos to a trained model.

    What a run of that name has done already is skipped, the tokens of :func:`preprocess` for
    example. Settings can be changed afterwards: ``partial.recipe.train.max_steps = 10``. They are
    checked when this is run, which raises a RequestError.

    Args:
        recipe: name of a recipe, or path of a YAML file.
        overrides: ``key=value`` for the recipe.
        name: of the run; empty: one that follows from the settings.
        folder: of runs.

    Raises:
        RequestError: no such recipe, or wrong overrides.
    """
    settings = _partial(load_recipe(recipe, overrides))
    return nemo_run.Partial(carry_out_post_train, recipe=settings, name=name, folder=folder)


def preprocess(
    recipe: str = "ar_tiny", overrides: Iterable[str] = (), name: str = "", folder: str = "runs"
) -> nemo_run.Partial:
    """The stages of a recipe before its training, on the machine where this is run.

    See :func:`post_train`, for the arguments as well.
    """
    settings = _partial(load_recipe(recipe, overrides))
    return nemo_run.Partial(carry_out_preprocess, recipe=settings, name=name, folder=folder)


def _partial(section: Section) -> nemo_run.Partial:
    """A section and those in it as NeMo-Run's configuration.

    Partial and not Config: Config would make the sections before the function is called, and what
    a section then raises is lost in fiddle, which cannot make a copy of it with a note.
    """
    values = ((key, getattr(section, key)) for key in section.__struct_fields__)
    return nemo_run.Partial(
        type(section),
        **{key: _partial(v) if isinstance(v, Section) else v for key, v in values},
    )


def _plain(value: Any) -> Any:
    """What NeMo-Run builds from :func:`_partial`, as plain data; a Section is accepted as well."""
    if isinstance(value, Section):
        return value.as_dict()
    if isinstance(value, partial):
        return {key: _plain(inner) for key, inner in value.keywords.items()}
    return value


def carry_out_post_train(recipe: Recipe, name: str = "", folder: str = "runs") -> None:
    """Carry out all stages on this machine; see :func:`post_train`.

    Raises:
        RequestError: a setting is wrong; nothing was started.
        WorkError: a stage failed.
    """
    _carry_out(recipe, name, folder, list(STAGES))


def carry_out_preprocess(recipe: Recipe, name: str = "", folder: str = "runs") -> None:
    """Carry out the stages before the training on this machine; see :func:`preprocess`.

    Raises:
        RequestError: a setting is wrong; nothing was started.
        WorkError: a stage failed.
    """
    _carry_out(recipe, name, folder, _BEFORE_TRAINING)


def _carry_out(recipe: Any, name: str, runs: str, stages: list[str]) -> None:
    data = _plain(recipe)
    resolved = validate(Recipe, data, f"recipe {data.get('name')}")
    profile = load_cluster(BUILT_IN, [f"runs={runs}"])
    start(make_request(resolved, profile, name, stages), profile, usual_console())


def _register() -> None:
    """Make ``nemorun cosmos_hpc post_train`` and ``preprocess``, with a factory for each recipe."""
    from nemo_run.cli.cli_parser import type_parser

    for work, factory in ((carry_out_post_train, post_train), (carry_out_preprocess, preprocess)):
        for function in (work, factory):
            # NeMo-Run's command line reads the types from here, and cannot read their names.
            function.__annotations__ = get_type_hints(function)
        nemo_run.cli.entrypoint(
            name=factory.__name__,
            namespace="cosmos_hpc",
            help=(factory.__doc__ or "").partition("\n")[0],
            default_factory=factory,
        )(work)
        for recipe in recipe_names():
            nemo_run.cli.factory(partial(factory, recipe), target=work, name=recipe)
    lists = (
        types_of(Data)["compression"],
        types_of(Architecture)["yarn_original_latent_shape"],
    )
    # Types of settings that NeMo-Run's command line cannot read.
    for kind in (bool | None, *lists):
        type_parser.register_parser(kind)(lambda text, _: parse_yaml(text, "a setting"))


_register()
