"""Checks a request, prepares its run folder, and starts what is missing where it is to run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cosmos_hpc.backends.docker import containers_of
from cosmos_hpc.backends.slurm import submit as slurm_submit
from cosmos_hpc.backends.slurm.script import check_path
from cosmos_hpc.config.clusters import Cluster, DockerCluster, MachineCluster, SlurmCluster
from cosmos_hpc.config.gpus import visible_gpus
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.tasks import list_rows
from cosmos_hpc.data.videos import resolve_source, video_costs
from cosmos_hpc.errors import RequestError, WorkError, explain_os_error
from cosmos_hpc.hub import cache as hub
from cosmos_hpc.planning.plans import (
    PYTHON_OF_JOBS,
    Plan,
    check_disk,
    check_installed,
    make_plan,
    with_layout,
)
from cosmos_hpc.runs.folder import RunFolder, check_folder, open_run, pin_videos
from cosmos_hpc.runs.stages import ask_for, is_done, write_specs
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console


@dataclass(frozen=True)
class Request:
    """A run, what of it to start, and where.

    Attributes:
        tasks: of the stages to start; None: all that are missing.
        dry_run: only prepare the run folder, and say what would be started.
        output: folder for the scripts of a dry run; None prints them.
    """

    folder: RunFolder
    recipe: Recipe
    cluster: Cluster
    stages: Sequence[str]
    tasks: Sequence[int] | None = None
    dry_run: bool = False
    output: str | Path | None = None


def start(request: Request, console: Console) -> None:
    """Check a request, prepare its run folder and start what is missing.

    Raises:
        RequestError: the request is wrong, or the cluster does not take it; nothing was started.
        WorkError: a stage failed.
    """
    folder, recipe, cluster = request.folder, request.recipe, request.cluster
    if isinstance(cluster, MachineCluster) and len(visible_gpus()) < cluster.gpus:
        raise RequestError(
            f"cluster {cluster.name} says {cluster.gpus} GPUs, and this machine has "
            f"{len(visible_gpus())}; cluster.gpu plans for GPUs that are elsewhere"
        )
    if _uses_this_python(cluster):
        slurm = isinstance(cluster, SlurmCluster)
        check_installed(request.stages, PYTHON_OF_JOBS if slurm else "")
    if isinstance(cluster, SlurmCluster):
        check_path(folder.path)
        if not request.dry_run:
            slurm_submit.check_cluster(cluster)
        if folder.info.exists():
            slurm_submit.record_pasted(folder)
    check_folder(folder, recipe)
    folder.forget_plan()
    if "download" in request.stages and not is_done(folder, recipe, "download", 0):
        hub.check_home(hub.needs(recipe))
    if isinstance(cluster, DockerCluster):
        containers_of(folder, recipe, cluster)  # refuses what cannot be had
    # An existing run keeps its videos.
    pinned = folder.num_videos()
    root, videos = ("", []) if pinned else list_rows(recipe, console.say)
    costs = video_costs(root, videos, recipe.data, console.say) if videos else None
    what = make_plan(recipe, cluster, pinned or len(videos), folder.num_shards())
    recipe = with_layout(recipe, what.layout)
    if folder.info.exists():
        slurm_submit.check_queued(folder, recipe, cluster, request.dry_run)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RequestError(explain_os_error(e, "making the run folder")) from None
    try:
        check_disk(what, folder.path)
    except RequestError:
        with contextlib.suppress(OSError):
            folder.path.rmdir()  # if it is new, and so empty
        raise
    try:
        with _alone(folder):
            # Slurm may still refuse; jobs in its queue are what begins a run.
            only_prepared = request.dry_run or isinstance(cluster, SlurmCluster)
            continued = open_run(folder, recipe, cluster, what, only_prepared)
            pin_videos(folder, root, videos, what.shards or 1, costs)
            write_specs(folder, recipe)
            if not request.dry_run:
                ask_for(folder, request.stages)
                console.say(what.render())
                console.say(f"{'continuing' if continued else 'new'} run {folder.path}")
            _run(replace(request, recipe=recipe), what, console)
    except OSError as e:
        raise WorkError(explain_os_error(e, "submit")) from e


@contextlib.contextmanager
def _alone(run: RunFolder) -> Iterator[None]:
    """Hold the run's lock."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(run.lock))
        except BlockingIOError as e:
            raise RequestError(f"run {run.name} is being worked on by {e}") from None
        yield


def _run(request: Request, what: Plan, console: Console) -> None:
    """Start what is missing, or say how that would be done."""
    # They bring NeMo-Run and submitit.
    from cosmos_hpc.backends import machine as local
    from cosmos_hpc.backends.slurm import dry_run

    folder, recipe, cluster = request.folder, request.recipe, request.cluster
    if isinstance(cluster, SlurmCluster):
        found = slurm_submit.prepare(folder, recipe, cluster, request.stages, request.tasks)
        if not request.dry_run:
            slurm_submit.submit(folder, cluster, found, console)
        elif request.output is None:
            print(dry_run.slurm_text(what, folder, found))
        else:
            for path in dry_run.write_slurm(what, folder, found, Path(request.output)):
                print(path)
        return
    assert isinstance(cluster, MachineCluster)
    if request.dry_run:
        print(dry_run.machine_text(what, folder, recipe, cluster, request.stages, request.tasks))
    else:
        local.run_stages(folder, recipe, cluster, request.stages, console, request.tasks)


def _uses_this_python(cluster: Cluster) -> bool:
    """Whether the work runs with the Python that submits it."""
    if isinstance(cluster, SlurmCluster):
        return cluster.python == sys.executable
    return not isinstance(cluster, DockerCluster)


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with its folders absolute: stages, and later submits, run elsewhere."""
    data, train = recipe.data, recipe.train
    data_paths = {"input": resolve_source(str(data.input))}
    for key in ("tokenizer", "text_encoder"):
        path = getattr(data, key)
        if path and Path(path).is_dir():
            data_paths[key] = os.path.abspath(path)
    start = {}
    if train.init_from and not hub.is_hub_name(train.init_from):
        start["init_from"] = os.path.abspath(train.init_from)
    return recipe.model_copy(
        update={
            "data": data.model_copy(update=data_paths),
            "train": train.model_copy(update=start),
        }
    )
