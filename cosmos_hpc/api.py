"""The doors of the package for Python: the words of the command line as functions.

What only some of them need is imported by these: looking at a run brings in neither the Hub nor
the rendering of scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_hpc.backends.kinds import AnyBackend, load_cluster, open_backend, read_cluster
from cosmos_hpc.config.clusters import BUILT_IN, OVERRIDE_PREFIX, Cluster
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder, find_run
from cosmos_hpc.runs.logs import follow
from cosmos_hpc.runs.stages import (
    STAGES,
    asked_for,
    default_stages,
    stage_and_following,
    stage_named,
)
from cosmos_hpc.runs.status import RunState, read_state
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console

if TYPE_CHECKING:
    from cosmos_hpc.backends.findings import Finding
    from cosmos_hpc.planning.plans import Plan


class Run:
    """A run folder, to look at and to continue.

    Args:
        name: path of the folder, or the run's name below ``runs``.
        runs: folder of runs.
        dry_run: see the attribute.

    Attributes:
        dry_run: what a dry run would do, as shell text, or the scripts that it wrote, one a line;
            empty for others.

    Raises:
        RequestError: there is no such run.
    """

    def __init__(self, name: str | Path, runs: str = "runs", dry_run: str = "") -> None:
        self.folder = find_run(str(name), runs)
        self.dry_run = dry_run

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _backend(self) -> AnyBackend:
        return open_backend(read_cluster(self.folder.cluster_file))

    def status(self) -> RunState:
        """State of the run and its stages, from what is on the disk and in the queue."""
        return read_state(self.folder, self._backend().queue(self.folder))

    def logs(self, stage: str | None = None, task: int | None = None) -> dict[str, Path]:
        """Log files of the latest attempts, by ``STAGE`` or ``STAGE.TASK``.

        Raises:
            RequestError: no such stage, or nothing logged for it yet.
        """
        if stage is not None:
            stage_named(stage)
        found = self._backend().logs(self.folder, stage, task)
        if not found:
            what = f"{stage or 'the run'}{'' if task is None else f'.{task}'}"
            raise RequestError(f"run {self.folder.name} has no log of {what} yet")
        return found

    def follow(self, stage: str | None = None, task: int | None = None) -> Iterator[str]:
        """Text as it is added to the newest log, stage after stage, until nobody works on the run.

        Raises:
            RequestError: no such stage.
        """
        if stage is not None:
            stage_named(stage)
        backend = self._backend()
        yield from follow(self.folder, lambda: backend.is_working(self.folder), stage, task)

    def cancel(self, now: bool = False) -> int:
        """Ask what works on this run to stop at a safe point, and wait until nothing does.

        A shard stops after the clips in flight, a training after a step, which it saves; workers
        that a killed submit has left behind stop as well, and what is only queued is taken out of
        the queue. Submitting again continues from there.

        Args:
            now: kill the jobs of a Slurm cluster instead; what they did since the last safe point
                is lost.

        Returns:
            How many processes or jobs worked on it or were queued.

        Raises:
            RequestError: Slurm does not answer.
        """
        return self._backend().cancel(self.folder, now)

    def retry(
        self, stage: str | None = None, task: int | None = None, console: Console | None = None
    ) -> None:
        """Start what is neither done nor queued of the stages that were asked for.

        Args:
            stage: begin with this stage; one that was not asked for before is from now on, and
                those that come after it. None: all of them.
            task: only this task of the stage, and nothing after it.
            console: where to show progress.

        Raises:
            RequestError: there is nothing to start, or the cluster does not take it.
            WorkError: a stage failed.
        """
        from cosmos_hpc.backends.base import Request
        from cosmos_hpc.backends.launch import start

        folder = self.folder
        asked = asked_for(folder)
        names = list(STAGES) if stage is None else stage_and_following(stage_named(stage).name)
        if stage is None or stage in asked:
            names = [name for name in names if name in asked]
        tasks = None
        if task is not None:
            names, tasks = names[:1], [task]
            _check_task(folder, names[0], task)
        request = Request(folder, folder.recipe(), names, tasks)
        start(request, read_cluster(folder.cluster_file), console or Console())

    def losses(self) -> list[tuple[int, float]]:
        """(step, training loss in nats per token) of every step so far."""
        rows = files.read_jsonl(self.folder.train.metrics)
        return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def _check_task(folder: RunFolder, stage: str, task: int) -> None:
    tasks = folder.data.num_shards() if STAGES[stage].array else 1
    if not 0 <= task < tasks:
        raise RequestError(
            f"there is no {stage}.{task} in run {folder.name}: it has {tasks} "
            f"task{'s' * (tasks > 1)}, counted from 0"
        )


def recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name, or by the path of a YAML file, with ``key=value`` overrides.

    Raises:
        RequestError: see :func:`cosmos_hpc.config.recipes.load_recipe`.
    """
    return load_recipe(name, overrides)


def download(names: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Path]:
    """Fetch what recipes need from the Hub into its cache below HF_HOME, each repository once.

    Complete files are not fetched again, partial ones are resumed; without a network a filled cache
    will do.

    Args:
        names: of recipes, or paths of YAML files.
        overrides: ``key=value``, for each of the recipes.

    Returns:
        The folder of each repository.

    Raises:
        RequestError: an unknown recipe, HF_HOME is not set, no access, no network or too small a
            disk; nothing was fetched for any of the recipes.
        WorkError: the transfer broke off; the same call resumes it.
    """
    from cosmos_hpc.hub import datasets, needs
    from cosmos_hpc.hub.cache import fetch_all

    recipes = [load_recipe(name, overrides) for name in names]
    for resolved in recipes:
        needs.check_sources(resolved)
    wanted = [need for resolved in recipes for need in needs.needs(resolved)]
    return fetch_all([*wanted, *(f for r in recipes for f in datasets.recipe_files(r))])


def init_cluster(name: str | None = None) -> Path:
    """Write a profile for the Slurm cluster that this machine belongs to; returns its path.

    Raises:
        RequestError: see :func:`cosmos_hpc.backends.slurm.init.init`.
    """
    from cosmos_hpc.backends.slurm.init import init

    return init(name)


def check_cluster(name: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """What works and what does not of a cluster's profile, before anything is started.

    Args:
        name: of the profile, or path of a YAML file.
        overrides: ``key=value``.

    Raises:
        RequestError: no such profile, or the cluster cannot be asked from here.
    """
    profile = load_cluster(name, [o.removeprefix(OVERRIDE_PREFIX) for o in overrides])
    return open_backend(profile).check()


def _resolve(name: str, cluster: str, overrides: Sequence[str]) -> tuple[Recipe, Cluster]:
    """Split overrides between recipe and cluster and load both."""
    to_cluster = [o for o in overrides if o.startswith(OVERRIDE_PREFIX)]
    to_recipe = [o for o in overrides if not o.startswith(OVERRIDE_PREFIX)]
    stripped = [o.removeprefix(OVERRIDE_PREFIX) for o in to_cluster]
    return load_recipe(name, to_recipe), load_cluster(cluster, stripped)


def plan(recipe: str, cluster: str = BUILT_IN, overrides: Sequence[str] = ()) -> Plan:
    """What would run: shards, ranks and sizes.

    Raises:
        RequestError: the request is wrong, or the cluster cannot run the recipe.
    """
    from cosmos_hpc.config.recipes import fitted_to_data, list_rows
    from cosmos_hpc.hub.datasets import located
    from cosmos_hpc.planning.plans import make_plan

    resolved, profile = _resolve(recipe, cluster, overrides)
    there = fitted_to_data(located(resolved))
    videos = len(list_rows(there)[1]) if there.data.input else None
    return make_plan(there, profile, videos)


def submit(
    recipe: str,
    cluster: str = BUILT_IN,
    overrides: Sequence[str] = (),
    name: str | None = None,
    stages: Sequence[str] | None = None,
    console: Console | None = None,
    dry_run: bool = False,
    output: str | Path | None = None,
) -> Run:
    """Run a recipe on a cluster, or continue the run of that name: completed work is skipped.

    On this machine this returns when the work is done, on a Slurm cluster when it is queued.

    Args:
        recipe: name of a recipe, or path of a YAML file.
        cluster: name of a profile, or path of a YAML file.
        overrides: ``key=value`` for the recipe, ``cluster.key=value`` for the cluster.
        name: of the run. None: one that follows from the request, so that repeating it continues.
        stages: which stages to run, of those that are not done. None: all but optional ones.
        console: where to show progress.
        dry_run: prepare the run folder and leave in :attr:`Run.dry_run` what would be started.
        output: folder for the scripts of a dry run.

    Raises:
        RequestError: the request is wrong; nothing was started.
        WorkError: a stage failed.
    """
    from cosmos_hpc.backends.launch import make_request, start

    resolved, profile = _resolve(recipe, cluster, overrides)
    chosen = default_stages() if stages is None else stages
    request = make_request(resolved, profile, name, chosen, dry_run)
    text = start(request, profile, console or Console(), Path(output) if output else None)
    return Run(request.folder.path, dry_run=text)
