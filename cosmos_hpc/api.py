"""The doors of the package for Python: the words of the command line as functions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cosmos_hpc.backends.launch import Request, absolute_paths, start
from cosmos_hpc.backends.slurm import submit as slurm_submit
from cosmos_hpc.backends.slurm.check import Finding, check
from cosmos_hpc.backends.slurm.init import init
from cosmos_hpc.config.clusters import (
    OVERRIDE_PREFIX,
    Cluster,
    SlurmCluster,
    load_cluster,
    read_cluster,
)
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.config.tasks import list_rows
from cosmos_hpc.errors import RequestError
from cosmos_hpc.hub import cache as hub
from cosmos_hpc.planning.plans import Plan, check_sources, make_plan
from cosmos_hpc.runs.folder import RunFolder, check_name, default_name, find_run
from cosmos_hpc.runs.logs import logs_of
from cosmos_hpc.runs.stages import STAGES, asked_for
from cosmos_hpc.runs.status import RunState, read_state
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console
from cosmos_hpc.utils.settings import nearest


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
        """Go on with what is neither done nor queued of the stages that were asked for.

        Args:
            stage: begin with this stage; one that was not asked for before is from now on, and
                those after it. None: the first that is not done.
            task: only this task of the stage, and nothing after it.
            console: where to show progress.

        Raises:
            RequestError: there is nothing to go on with, or the cluster does not take it.
            WorkError: a stage failed.
        """
        if stage is not None:
            _check_stages([stage])
        folder = self.folder
        asked = asked_for(folder)
        stages = STAGES[STAGES.index(stage) if stage else 0 :]
        if stage is None or stage in asked:
            stages = tuple(name for name in stages if name in asked)
        chosen = None if task is None else [task]
        stages = stages[:1] if chosen else stages
        tasks = folder.num_shards() if stages[0] == "preprocess" else 1
        if task is not None and not 0 <= task < tasks:
            raise RequestError(
                f"there is no {stages[0]}.{task} in run {folder.name}: it has {tasks} "
                f"task{'s' * (tasks > 1)}, counted from 0"
            )
        cluster = read_cluster(folder.cluster_file)
        start(Request(folder, folder.recipe(), cluster, stages, chosen), console or Console())

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
        RequestError: see :func:`cosmos_hpc.config.recipes.load_recipe`.
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
        RequestError: see :func:`cosmos_hpc.backends.slurm.init.init`.
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
    resolved = absolute_paths(resolved)
    request = Request(folder, resolved, profile, stages, dry_run=dry_run, output=output)
    start(request, console or Console())
    return Run(folder.path)


def _check_stages(stages: Sequence[str]) -> None:
    for stage in stages:
        if stage not in STAGES:
            hint = nearest(stage, STAGES) or f"; there are {', '.join(STAGES)}"
            raise RequestError(f"unknown stage {stage!r}{hint}")
