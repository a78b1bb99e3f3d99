"""The doors of the package for Python: the words of the command line as functions."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cosmos_hpc import files, hub, slurm_submit
from cosmos_hpc.attempts import attempted_tasks, read_attempt
from cosmos_hpc.cluster import (
    OVERRIDE_PREFIX,
    Cluster,
    LocalCluster,
    SlurmCluster,
    load_cluster,
    read_cluster,
)
from cosmos_hpc.cluster_check import Finding, check
from cosmos_hpc.cluster_init import init
from cosmos_hpc.config import nearest
from cosmos_hpc.console import Console
from cosmos_hpc.errors import RequestError, WorkError, explain_os_error
from cosmos_hpc.gpus import visible_gpus
from cosmos_hpc.inputs import list_rows
from cosmos_hpc.plans import (
    Plan,
    check_disk,
    check_installed,
    check_sources,
    make_plan,
    with_layout,
)
from cosmos_hpc.recipes import Recipe, load_recipe
from cosmos_hpc.runs import (
    RunFolder,
    check_folder,
    check_name,
    default_name,
    find_run,
    open_run,
    pin_videos,
)
from cosmos_hpc.stages import STAGES, is_done, write_specs
from cosmos_hpc.state import RunState, read_state
from cosmos_hpc.videos import resolve_source, video_costs


class Run:
    """A run folder, to look at and to go on with.

    Args:
        name: path of the folder, or the run's name below ``runs``.
        runs: folder of runs.

    Raises:
        RequestError: there is no such run.
    """

    def __init__(self, name: str | Path, runs: str = "runs") -> None:
        self.folder = find_run(str(name), runs)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def status(self) -> RunState:
        """State of the run and its stages, from what is on the disk."""
        return read_state(self.folder)

    def logs(self, stage: str | None = None, task: int | None = None) -> dict[str, Path]:
        """Log files of the latest attempts, by ``STAGE`` or ``STAGE.TASK``.

        Raises:
            RequestError: no such stage, or nothing logged for it yet.
        """
        if stage is not None:
            _check_stages([stage])
        found = dict(logs_of(self.folder, stage, task))
        if not found:
            what = f"{stage or 'the run'}{'' if task is None else f'.{task}'}"
            raise RequestError(f"run {self.folder.name} has no log of {what} yet")
        return found

    def cancel(self, now: bool = False) -> int:
        """Ask what works on this run to stop at a safe point, and wait until nothing does.

        A shard stops after the clips in hand, a training after a step, which it saves; workers that
        a killed submit has left behind stop as well, and what is only queued is taken out of the
        queue. Submitting again goes on from there.

        Args:
            now: kill the jobs of a Slurm cluster instead; what they did since the last safe point
                is lost.

        Returns:
            How many processes or jobs worked on it or were queued.

        Raises:
            RequestError: Slurm does not answer.
        """
        if isinstance(read_cluster(self.folder.cluster_file), SlurmCluster):
            return slurm_submit.cancel(self.folder, now)
        folder = self.folder
        working = _workers(folder)
        if working:
            files.write_atomic(folder.stop_request, "")
            while _workers(folder):
                time.sleep(0.2)
        return len(working)

    def retry(
        self, stage: str | None = None, task: int | None = None, console: Console | None = None
    ) -> None:
        """Go on with what is neither done nor queued, as the run was submitted.

        Args:
            stage: begin with this stage; None: the first that is not done.
            task: only this task of the stage, and nothing after it.
            console: where to show progress.

        Raises:
            RequestError: there is nothing to go on with, or the cluster does not take it.
            WorkError: a stage failed.
        """
        if stage is not None:
            _check_stages([stage])
        folder = self.folder
        stages = STAGES[STAGES.index(stage) if stage else 0 :]
        chosen = None if task is None else [task]
        stages = stages[:1] if chosen else stages
        cluster = read_cluster(folder.cluster_file)
        _start(_Request(folder, folder.recipe(), cluster, stages, chosen), console or Console())

    def losses(self) -> list[tuple[int, float]]:
        """(step, training loss in nats an id) of every step so far."""
        rows = files.read_jsonl(self.folder.metrics)
        return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def _workers(folder: RunFolder) -> list[Path]:
    """Locks that somebody holds: the submit's, and those of tasks."""
    locks = [folder.lock, *folder.task_lock("x", 0).parent.glob("*")]
    return [lock for lock in locks if files.is_locked(lock)]


def recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name, or by the path of a YAML file, with ``key=value`` overrides.

    Raises:
        RequestError: see :func:`cosmos_hpc.recipes.load_recipe`.
    """
    return load_recipe(name, overrides)


def download(names: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Path]:
    """Fetch what recipes need from the Hub into its cache below HF_HOME, each repository once.

    Whole files are not fetched again, half ones go on; without a network a filled cache will do.

    Args:
        names: of recipes, or paths of YAML files.
        overrides: ``key=value``, for each of the recipes.

    Returns:
        The folder of each repository.

    Raises:
        RequestError: an unknown recipe, HF_HOME is not set, no access, no network or too small a
            disk; nothing was fetched for any of the recipes.
        WorkError: the transfer broke off; the same call goes on from there.
    """
    recipes = [load_recipe(name, overrides) for name in names]
    for resolved in recipes:
        check_sources(resolved)
    return hub.fetch_all(need for resolved in recipes for need in hub.needs(resolved))


def init_cluster(name: str | None = None) -> Path:
    """Write a profile for the Slurm cluster that this machine belongs to; returns its path.

    Raises:
        RequestError: see :func:`cosmos_hpc.cluster_init.init`.
    """
    return init(name)


def check_cluster(name: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """What works and what does not of a Slurm cluster's profile, before anything is queued.

    Args:
        name: of the profile, or path of a YAML file.
        overrides: ``key=value``.

    Raises:
        RequestError: no such profile, it is not of a Slurm cluster, or there is no Slurm here.
    """
    profile = load_cluster(name, [o.removeprefix(OVERRIDE_PREFIX) for o in overrides])
    if not isinstance(profile, SlurmCluster):
        raise RequestError(f"cluster {name} is this machine, not a Slurm cluster; nothing to check")
    return check(profile)


def _resolve(name: str, cluster: str, overrides: Sequence[str]) -> tuple[Recipe, Cluster]:
    """Split overrides between recipe and cluster and load both."""
    to_cluster = [o for o in overrides if o.startswith(OVERRIDE_PREFIX)]
    to_recipe = [o for o in overrides if not o.startswith(OVERRIDE_PREFIX)]
    stripped = [o.removeprefix(OVERRIDE_PREFIX) for o in to_cluster]
    return load_recipe(name, to_recipe), load_cluster(cluster, stripped)


def plan(recipe: str, cluster: str = "local", overrides: Sequence[str] = ()) -> Plan:
    """What would run: shards, ranks and sizes.

    Raises:
        RequestError: the request is wrong, or the cluster cannot run the recipe.
    """
    resolved, profile = _resolve(recipe, cluster, overrides)
    videos = len(list_rows(resolved)[1]) if resolved.data.input else None
    return make_plan(resolved, profile, videos)


def submit(
    recipe: str,
    cluster: str = "local",
    overrides: Sequence[str] = (),
    name: str | None = None,
    stages: Sequence[str] = STAGES,
    console: Console | None = None,
    dry_run: bool = False,
    output: str | Path | None = None,
) -> Run:
    """Run a recipe on a cluster, or go on with the run of that name: what is whole is not redone.

    On a local cluster this returns when the work is done, on a Slurm cluster when it is queued.

    Args:
        recipe: name of a recipe, or path of a YAML file.
        cluster: name of a profile, or path of a YAML file.
        overrides: ``key=value`` for the recipe, ``cluster.key=value`` for the cluster.
        name: of the run. None: one that follows from the request, so that repeating it continues.
        stages: which stages to run, of those that are not done.
        console: where to show progress.
        dry_run: prepare the run folder and print what would be started, as shell text, instead.
        output: folder for the scripts of a dry run.

    Raises:
        RequestError: the request is wrong; nothing was started.
        WorkError: a stage failed.
    """
    _check_stages(stages)
    resolved, profile = _resolve(recipe, cluster, overrides)
    name = name or default_name(resolved, profile)
    check_name(name)
    folder = RunFolder(Path(profile.runs) / name)
    check_sources(resolved)
    if resolved.data.input is None:
        raise RequestError(
            "data.input is not set; give the folder that holds the videos, or a list of them"
        )
    resolved = _absolute_paths(resolved)
    request = _Request(folder, resolved, profile, stages, dry_run=dry_run, output=output)
    _start(request, console or Console())
    return Run(folder.path)


@dataclass(frozen=True)
class _Request:
    """A run, what of it to start, and where."""

    folder: RunFolder
    recipe: Recipe
    cluster: Cluster
    stages: Sequence[str]
    tasks: Sequence[int] | None = None
    dry_run: bool = False
    output: str | Path | None = None


def _start(request: _Request, console: Console) -> None:
    """Check a request, prepare its run folder and start what is missing."""
    folder, recipe, cluster = request.folder, request.recipe, request.cluster
    if isinstance(cluster, LocalCluster) and len(visible_gpus()) < cluster.gpus:
        raise RequestError(
            f"cluster {cluster.name} says {cluster.gpus} GPUs, and this machine has "
            f"{len(visible_gpus())}; cluster.gpu plans for GPUs that are elsewhere"
        )
    if _uses_this_python(cluster):
        check_installed(request.stages)
    if isinstance(cluster, SlurmCluster) and folder.info.exists():
        slurm_submit.record_pasted(folder)
    check_folder(folder, recipe)
    if "download" in request.stages and not is_done(folder, recipe, "download", 0):
        hub.check_home(hub.needs(recipe))
    # A run that has begun keeps its videos.
    pinned, shards = (folder.num_videos(), folder.num_shards()) if folder.begun() else (0, 0)
    root, videos = ("", []) if pinned else list_rows(recipe, console.say)
    costs = video_costs(root, videos, recipe.data) if videos else None
    what = make_plan(recipe, cluster, pinned or len(videos), shards)
    recipe = with_layout(recipe, what.layout)
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
        with files.lock(folder.lock):
            continued = open_run(folder, recipe, cluster, what)
            pin_videos(folder, root, videos, what.shards or 1, costs)
            write_specs(folder, recipe)
            if not request.dry_run:
                console.say(what.render())
                console.say(f"{'continuing' if continued else 'new'} run {folder.path}")
            _run(replace(request, recipe=recipe), what, console)
    except BlockingIOError as e:
        raise RequestError(f"run {folder.name} is being worked on by {e}") from None
    except OSError as e:
        raise WorkError(explain_os_error(e, "submit")) from e


def _run(request: _Request, what: Plan, console: Console) -> None:
    """Start what is missing, or say how that would be done."""
    # They bring NeMo-Run and submitit.
    from cosmos_hpc import dry_run, local

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
    elif request.dry_run:
        print(dry_run.local_text(what, folder, recipe, list(request.stages)))
    else:
        assert isinstance(cluster, LocalCluster)
        local.run_stages(folder, recipe, cluster, request.stages, console)


def _uses_this_python(cluster: Cluster) -> bool:
    """Whether the work runs with the Python that submits it."""
    return not isinstance(cluster, SlurmCluster) or cluster.container is None


def _absolute_paths(recipe: Recipe) -> Recipe:
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


def _check_stages(stages: Sequence[str]) -> None:
    for stage in stages:
        if stage not in STAGES:
            hint = nearest(stage, STAGES) or f"; there are {', '.join(STAGES)}"
            raise RequestError(f"unknown stage {stage!r}{hint}")


def logs_of(
    folder: RunFolder, stage: str | None = None, task: int | None = None
) -> Iterator[tuple[str, Path]]:
    """Log files by ``STAGE`` or ``STAGE.TASK``, in the order in which they were begun."""
    rows = [
        (row["time"], row["stage"], row["task"], folder.path / row["log"])
        for row in files.read_jsonl(folder.log_index)
    ]
    for name in STAGES if stage is None else [stage]:
        for number in attempted_tasks(folder, name) if task is None else [task]:
            attempt = read_attempt(folder, name, number)
            if attempt:
                rows.append((attempt.started, name, number, attempt.log))
    for _, name, number, log in sorted(rows):
        if stage in (None, name) and task in (None, number):
            yield f"{name}.{number}" if name == "preprocess" else name, log


def follow(
    run: Run, stage: str | None = None, task: int | None = None, every: float = 0.5
) -> Iterator[str]:
    """Text that is added to the run's newest log, stage after stage, while the run is worked on.

    Args:
        run: the run.
        stage, task: only logs of these.
        every: seconds between looks.
    """
    log, position = None, 0
    ask = _Asker(run.folder)
    while True:
        working = ask.working()
        found = [path for _, path in logs_of(run.folder, stage, task)]
        newest = found[-1] if found else None
        if newest != log:
            log, position = newest, 0
            yield f"==> {log} <==\n"
        text = b""
        if log and log.exists():
            with open(log, "rb") as f:
                f.seek(position)
                text = f.read()
            position += len(text)
        if text:
            yield text.decode(errors="replace")
        elif not working:
            return
        else:
            time.sleep(every)


class _Asker:
    """Whether a run is worked on; asks Slurm not more often than it should be."""

    _SECONDS = 10.0

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._slurm = isinstance(read_cluster(folder.cluster_file), SlurmCluster)
        self._asked, self._answer = -math.inf, True

    def working(self) -> bool:
        if not self._slurm:
            return files.is_locked(self._folder.lock)
        if time.monotonic() - self._asked > self._SECONDS:
            self._asked = time.monotonic()
            with contextlib.suppress(RequestError):  # it may answer again
                self._answer = bool(slurm_submit.active_jobs(self._folder))
        return self._answer
