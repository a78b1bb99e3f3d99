"""Checks a request, prepares its run folder, and has a backend start what is missing."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cosmos_hpc.backends.base import Request
from cosmos_hpc.backends.kinds import AnyBackend, open_backend, read_cluster
from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.recipes import Recipe, fitted_to_data, list_input
from cosmos_hpc.config.sections import Data
from cosmos_hpc.data.file_stats import check_some_exist
from cosmos_hpc.data.videos import resolve_source, video_costs
from cosmos_hpc.data.wanted import Row
from cosmos_hpc.errors import RequestError, WorkError, explain_os_error
from cosmos_hpc.hub import needs as hub
from cosmos_hpc.hub.cache import check_home
from cosmos_hpc.hub.datasets import located
from cosmos_hpc.planning.plans import Plan, check_gpus, make_plan, resolved
from cosmos_hpc.runs.create import (
    CHANGEABLE,
    check_folder,
    check_name,
    default_name,
    forget_plan,
    keeps_settings,
    open_run,
)
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.queue import Queue
from cosmos_hpc.runs.requirements import check_disk, install_command
from cosmos_hpc.runs.stages import (
    STAGES,
    RunStage,
    absent_stages,
    ask_for,
    is_done,
    list_stages,
    missing_tasks,
    nearest_before,
    needed_for,
    source_settings,
    stage_named,
    write_specs,
)
from cosmos_hpc.runs.sweeps import (
    LEFT_OUT,
    exists,
    join_sweep,
    member_of,
    own_stages,
    source_of,
)
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console
from cosmos_hpc.utils.mappings import flatten
from cosmos_hpc.utils.settings import setting


def make_request(
    recipe: Recipe,
    cluster: Cluster,
    name: str | None,
    stages: Sequence[str],
    dry_run: bool = False,
) -> Request:
    """The request of a user, as :func:`start` takes it.

    Args:
        recipe: resolved, without a layout.
        cluster: where.
        name: of the run; none: one that follows from the recipe and the cluster.
        stages: names of those to start.
        dry_run: see :class:`~cosmos_hpc.backends.base.Request`.

    Raises:
        RequestError: an unknown stage, a name that is none, files that are nowhere, no input, or
            a file where the run folder would be.
    """
    for stage in stages:
        stage_named(stage)
    name = name or default_name(recipe, cluster)
    check_name(name)
    check_gpus(recipe, cluster)
    hub.check_sources(recipe)
    absent = absent_stages(recipe)
    if recipe.trains and recipe.data.input is None:
        raise RequestError(
            "data.input is not set; give the folder that holds the videos, or a list of them"
        )
    folder = RunFolder(Path(cluster.runs) / name)
    if found := files.file_in_place_of(folder.path):
        raise RequestError(
            f"the run folder {folder.path} cannot be made: {found} is a file; choose another place "
            f"with cluster.runs=DIR, or another --name"
        )
    wanted = [stage for stage in stages if stage not in absent]
    return Request(folder, absolute_paths(recipe), wanted, dry_run=dry_run)


def start(request: Request, cluster: Cluster, console: Console, output: Path | None = None) -> str:
    """Check a request, prepare its run folder and start what is missing.

    Args:
        request: what is asked for.
        cluster: where.
        console: where to show progress.
        output: folder for the scripts of a dry run.

    Returns:
        The text of a dry run, or the scripts that were written, one per line; else nothing.

    Raises:
        RequestError: the request is wrong, or the cluster does not take it; nothing was started.
        WorkError: a stage failed.
    """
    folder = request.folder
    recipe, listed = _fitted(request)
    request = replace(request, recipe=recipe)
    backend = open_backend(cluster)
    # A dry run may be for a cluster that cannot be asked from here.
    elsewhere = request.dry_run and backend.is_elsewhere()
    if not elsewhere:
        backend.take_note(folder)
    check_folder(folder, recipe)
    if not _is_worked_on(folder):
        forget_plan(folder)
    member = member_of(folder, request.member)
    source = source_of(folder, member)
    if member and member.tokens:
        request = replace(request, stages=own_stages(folder, recipe, request.stages, source))
    if not elsewhere:
        _check_home(request)
    backend.check_request(request)
    # An existing run keeps its videos.
    listing = (source or folder).data
    pinned = listing.num_videos()
    root, videos = ("", []) if pinned else list_input(listed(), console.say)
    costs = None
    if videos and recipe.trains:
        if listed().data.input == recipe.data.input:
            # On this machine, and not to be fetched yet.
            check_some_exist(f"data.input={root}", root, videos)
        costs = costs_of(root, videos, recipe.data, console.say)
    what = make_plan(recipe, cluster, pinned or len(videos), listing.num_shards())
    recipe = resolved(recipe, what)
    with _folder_made(folder):
        if cluster.check_disk and not elsewhere:
            check_disk(what.disk_bytes, folder.path)
        try:
            with _alone(folder):
                with _nothing_left(folder):
                    # Asked once, when no other submit can add to it any more.
                    queue = backend.queue(folder)
                    if queue.problem and not (elsewhere and not folder.begun()):
                        raise RequestError(queue.problem)
                    _check_queued(request, recipe, backend, queue)
                    request = replace(request, recipe=recipe)
                    _check_results(request, list_stages(what.shards or 1, recipe), queue, source)
                    # What is queued may still be refused; jobs are what begins such a run.
                    only_prepared = request.dry_run or backend.returns_when == "queued"
                    begun = exists(folder)
                    continued = open_run(folder, recipe, cluster, what, only_prepared)
                    if member:
                        join_sweep(folder, member)
                    if source:
                        folder.data.take_over(source.data)
                    else:
                        folder.data.pin(root, videos, what.shards or 1, costs)
                    write_specs(folder, recipe)
                    prepared = backend.prepare(request, queue, console)
                    if request.dry_run:
                        return _dry_run(backend, request, prepared, what, output)
                ask_for(folder, request.stages)
                if source is None:  # else that run has shown it
                    console.say(what.render())
                # Runs of a sweep are prepared before any of them begins.
                new = not continued or (request.member and not begun)
                console.say(f"{'new' if new else 'continuing'} run {folder.path}")
                backend.submit(request, prepared, console)
                return ""
        except OSError as e:
            raise WorkError(explain_os_error(e, "submit")) from e


@contextlib.contextmanager
def _folder_made(run: RunFolder) -> Iterator[None]:
    """Make the run folder; empty ones that are new do not outlast a refusal."""
    new = [path for path in (run.path, *run.path.parents) if not path.exists()]
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RequestError(explain_os_error(e, "making the run folder")) from None
    try:
        yield
    except RequestError:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _nothing_left(run: RunFolder) -> Iterator[None]:
    """Remove what the block writes for a new run, where the request is refused after all."""
    new = not run.recipe_file.exists()
    try:
        yield
    except RequestError:
        if new:
            for path in run.path.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


def _fitted(request: Request) -> tuple[Recipe, Callable[[], Recipe]]:
    """The recipe with the settings that follow from its data, and the same with a local input.

    A run that has begun keeps what it found then, and does without its input.
    """
    run, recipe = request.folder, request.recipe
    if keeps_settings(run):
        model = recipe.model
        if model.action_width is None:
            kept = run.recipe().model.action_width
            recipe = replace(recipe, model=replace(model, action_width=kept))
        return recipe, lambda: located(recipe)
    there = fitted_to_data(located(recipe))
    data = replace(there.data, input=recipe.data.input)
    return replace(there, data=data), lambda: there


def _check_home(request: Request) -> None:
    """Refuse stages that are to fetch from the Hub where no folder is named for it."""
    for name in request.stages:
        fetches = hub.SETTINGS.intersection(STAGES[name].sources)
        if fetches and not is_done(request.folder, request.recipe, name):
            check_home(hub.needs(request.recipe))


def costs_of(
    root: str, videos: list[Row], data: Data, note: Callable[[str], None]
) -> tuple[str, list[int]]:
    """What preparing each video costs, for shards of equal cost, and in which unit.

    Args:
        root: that paths are relative to.
        videos: rows of the videos.
        data: which clips are wanted, and whether headers are read.
        note: called from time to time with the progress.

    Raises:
        RequestError: headers are to be read here, and PyAV is not installed.
    """
    probe = None
    if data.probe:
        try:
            from cosmos_hpc.worker.video.probe import declared_frames
        except ModuleNotFoundError as e:
            raise RequestError(
                f"data.probe=true reads the headers of the videos here, and {e.name} is not "
                f"installed; {install_command('worker')}, or leave data.probe out"
            ) from None
        probe = declared_frames
    return video_costs(root, videos, clips=data.clips, frames=data.frames, probe=probe, note=note)


def _is_worked_on(run: RunFolder) -> bool:
    """Whether jobs or another submit may be going to read the run as it is."""
    if not run.info.exists() or keeps_settings(run) or not run.begun():
        return False  # the files say all
    if files.is_locked(run.lock):
        return True
    queue = open_backend(read_cluster(run.cluster_file)).queue(run)
    return bool(queue.problem) or queue.working


def _check_queued(request: Request, recipe: Recipe, backend: AnyBackend, queue: Queue) -> None:
    """Refuse changes of what jobs in the queue are going to read.

    Raises:
        RequestError: jobs of the run are in the queue, and the request is for another kind of
            cluster, or other ranks or tasks than they have, or is a dry run of other settings; or
            the queue that they may be in does not answer.
    """
    run = request.folder
    if not run.info.exists():
        return
    old = read_cluster(run.cluster_file)
    moved = old.kind != backend.cluster.kind
    if moved:
        queue = open_backend(old).queue(run)
        if queue.problem and queue.reachable:
            raise RequestError(queue.problem)
    if not queue.stages:
        return
    what = f"run {run.name} has jobs in the queue of cluster {old.name}"
    then = f"wait for them, or cosmos-hpc cancel {run.name} first"
    if moved:
        name = backend.cluster.name
        raise RequestError(f"{what}, and this request is for {name}; {then}")
    before = flatten(run.recipe().as_dict())
    after = flatten(recipe.as_dict())
    # The jobs run the package as it was then, which refuses settings that it does not know.
    read = flatten((files.read_json(run.spec(min(queue.stages))) or {"recipe": after})["recipe"])
    if unknown := sorted(after.keys() - read.keys()):
        raise RequestError(
            f"{what}, of an older cosmos-hpc that does not know {unknown[0]}; {then}"
        )
    counted = {key for stage in queue.stages for key in (STAGES[stage].ranks, STAGES[stage].tasks)}
    differ = [key for key in after if before.get(key) != after[key]]
    fixed = [key for key in differ if request.dry_run or key in counted or key not in CHANGEABLE]
    if fixed:
        key = fixed[0]
        raise RequestError(f"{what}, with {key}={before.get(key)}, not {after[key]}; {then}")


def _check_results(
    request: Request, stages: Sequence[RunStage], queue: Queue, source: RunFolder | None
) -> None:
    """Refuse a stage without the results that it needs, where nothing is going to make them.

    Args:
        request: names the stages that are to be started.
        stages: of the run.
        queue: those that are going to run anyway.
        source: the run whose tokens this one takes over.

    Raises:
        RequestError: names the stages that would.
    """
    run, recipe = request.folder, request.recipe
    missing = {s.name for s in stages if missing_tasks(run, recipe, s)}
    missing -= {LEFT_OUT} if source else set()
    lacking = missing - {*request.stages, *queue.stages}
    there = [stage.name for stage in stages]
    for name in missing.intersection(request.stages):
        before = nearest_before(name, there.__contains__)
        if STAGES[name].takes_what_there_is or not lacking.intersection(before):
            continue
        needed = [one for one in there if one in lacking & needed_for(name)]
        raise RequestError(
            f"stage {name} needs the results of {', '.join(needed)}, which run {run.name} does "
            f"not have; --stages {','.join([*needed, name])} makes them"
        )


@contextlib.contextmanager
def _alone(run: RunFolder) -> Iterator[None]:
    """Hold the run's lock."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(run.lock))
        except BlockingIOError as e:
            raise RequestError(f"run {run.name} is being worked on by {e}") from None
        yield


def _dry_run(
    backend: AnyBackend, request: Request, prepared: Any, plan: Plan, output: Path | None
) -> str:
    if output is None:
        return backend.render(request, prepared, plan)
    try:
        return "\n".join(map(str, backend.write(request, prepared, plan, output)))
    except OSError as e:
        raise RequestError(explain_os_error(e, "writing the scripts")) from None


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with its folders absolute: stages, and later submits, run elsewhere."""
    built_in = {source.setting: source.built_in for source in hub.SOURCES}
    changed: dict[str, dict[str, str]] = {}
    for key in source_settings():
        section, _, name = key.partition(".")
        value = setting(recipe, key)
        if not value or value == built_in.get(key):
            continue  # a folder of that name is something else
        if key == "data.input":
            changed.setdefault(section, {})[name] = resolve_source(str(value))
        elif os.path.exists(value):  # noqa: PTH110 - a name on the Hub may be no path
            changed.setdefault(section, {})[name] = os.path.abspath(value)
    generate = recipe.generate
    if generate.guard and generate.guard_file:
        function = generate.guard.rpartition(":")[2]
        guard = f"{os.path.abspath(generate.guard_file)}:{function}"
        changed.setdefault("generate", {})["guard"] = guard
    sections = {
        section: replace(getattr(recipe, section), **values) for section, values in changed.items()
    }
    return replace(recipe, **sections)
