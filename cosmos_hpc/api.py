"""The doors of the package for Python: the words of the command line as functions.

What only some of them need is imported by these: looking at a run brings in neither the Hub nor
the rendering of scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from cosmos_hpc.backends.findings import Findings
from cosmos_hpc.backends.kinds import load_cluster, open_backend, queues_of
from cosmos_hpc.config.clusters import BUILT_IN, OVERRIDE_PREFIX
from cosmos_hpc.config.overrides import Overrides, as_list
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.run import Run, generate, split_overrides
from cosmos_hpc.runs.comparison import Comparison, compare_runs
from cosmos_hpc.runs.listing import ListedRun, find_runs, list_html, list_runs, render_list
from cosmos_hpc.runs.requirements import install_command
from cosmos_hpc.runs.stages import default_stages
from cosmos_hpc.sweep import Sweep, submit_sweep
from cosmos_hpc.utils.console import Console, usual_console
from cosmos_hpc.utils.settings import apply_overrides, validate

__all__ = [
    "Run",
    "Runs",
    "Sweep",
    "check_cluster",
    "compare",
    "download",
    "generate",
    "init_cluster",
    "plan",
    "recipe",
    "runs",
    "sample_videos",
    "submit",
]

if TYPE_CHECKING:
    from cosmos_hpc.hub.cache import Fetched
    from cosmos_hpc.planning.plans import Plan


class Runs(list[Run]):
    """Runs, which show themselves as the table of ``cosmos-hpc runs``."""

    def __str__(self) -> str:
        return render_list(self._listed())

    def _repr_html_(self) -> str:
        return list_html(self._listed())

    def _listed(self) -> list[ListedRun]:
        folders = [run.folder for run in self]
        return list_runs(folders, queues_of(folders))


def runs(place: str | Path = "runs", cluster: str | None = None) -> Runs:
    """The runs of a folder, by name: a list, which prints as a table of their states.

    Args:
        place: the folder that holds them.
        cluster: name of a profile, or path of a YAML file, whose folder of runs is meant instead.

    Raises:
        RequestError: there is no such folder or profile.
    """
    folder = Path(load_cluster(cluster).runs if cluster else place)
    return Runs(Run(found.path) for found in find_runs(folder))


def compare(runs: Sequence[Run | str | Path]) -> Comparison:
    """Losses and scores of runs beside each other, and the settings in which they differ.

    Args:
        runs: names or paths of runs, or :class:`Run`.

    Returns:
        A table, which shows itself as text and in a notebook; its numbers are in ``scores``.

    Raises:
        RequestError: there is no such run, or none was given.
    """
    given = [runs] if isinstance(runs, str | Path | Run) else runs
    folders = [(one if isinstance(one, Run) else Run(one)).folder for one in given]
    if not folders:
        raise RequestError("compare needs runs; cosmos_hpc.runs() lists those of a folder")
    return compare_runs(folders)


def recipe(name: str, overrides: Overrides = ()) -> Recipe:
    """A recipe by name, or by the path of a YAML file, with a list of ``key=value`` or a dict.

    Raises:
        RequestError: no such recipe, an unknown key, a wrong type or an impossible size.
    """
    return load_recipe(name, as_list(overrides))


def download(names: str | Sequence[str], overrides: Overrides = ()) -> Fetched:
    """Fetch what recipes need from the Hub into its cache below HF_HOME, each repository once.

    Complete files are not fetched again, partial ones are resumed; without a network a filled cache
    will do.

    Args:
        names: of recipes, or paths of YAML files; or one of them.
        overrides: ``key=value`` in a list, or a dict, for each of the recipes.

    Returns:
        The folder of each repository: a dict, which prints as text.

    Raises:
        RequestError: an unknown recipe, HF_HOME is not set, no access, no network or too small a
            disk; nothing was fetched for any of the recipes.
        WorkError: the transfer broke off; the same call resumes it.
    """
    from cosmos_hpc.hub import datasets, needs
    from cosmos_hpc.hub.cache import fetch_all

    changes = as_list(overrides)
    named = [names] if isinstance(names, str) else names
    recipes = [load_recipe(name, changes) for name in named]
    for resolved in recipes:
        needs.check_sources(resolved)
    wanted = [need for resolved in recipes for need in needs.needs(resolved)]
    return fetch_all([*wanted, *(f for r in recipes for f in datasets.recipe_files(r))])


def sample_videos(folder: str | Path = "videos", overrides: Overrides = ()) -> Path:
    """Make videos of drifting lights, to try the package with; returns their folder.

    Args:
        folder: where; it is made if need be.
        overrides: of :class:`cosmos_hpc.worker.video.samples.SampleVideos`, such as ``count=20``,
            in a list, or a dict.

    Raises:
        RequestError: an unknown setting, or the extra ``worker`` is not installed.
    """
    try:
        from cosmos_hpc.worker.video.samples import SampleVideos, make_sample_videos
    except ModuleNotFoundError as e:
        raise RequestError(
            f"making videos needs {e.name}, which is not installed; {install_command('worker')}"
        ) from None
    changes = apply_overrides({}, as_list(overrides), SampleVideos)
    make_sample_videos(folder, validate(SampleVideos, changes, "request"))
    return Path(folder)


def init_cluster(name: str | None = None) -> Path:
    """Write a profile for the Slurm cluster that this machine belongs to; returns its path.

    Raises:
        RequestError: there is no Slurm here, no partition is up, or the file exists.
    """
    from cosmos_hpc.backends.slurm.init import init

    return init(name)


def check_cluster(name: str, overrides: Overrides = ()) -> Findings:
    """What works and what does not of a cluster's profile, before anything is started.

    Args:
        name: of the profile, or path of a YAML file.
        overrides: ``key=value`` in a list, or a dict.

    Raises:
        RequestError: no such profile, or the cluster cannot be asked from here.
    """
    profile = load_cluster(name, [o.removeprefix(OVERRIDE_PREFIX) for o in as_list(overrides)])
    return Findings(open_backend(profile).check())


def plan(recipe: str, cluster: str = BUILT_IN, overrides: Overrides = ()) -> Plan:
    """What would run: shards, ranks and sizes. Nothing is started or written.

    Args:
        recipe: name of a recipe, or path of a YAML file; ``data.input`` may be left out.
        cluster: name of a profile, or path of a YAML file.
        overrides: as for :func:`submit`.

    Returns:
        A plan, which shows itself as text (``render()``) and in a notebook.

    Raises:
        RequestError: the request is wrong, or the cluster cannot run the recipe.
    """
    from cosmos_hpc.config.recipes import fitted_to_data, list_input
    from cosmos_hpc.config.sweeps import swept_values
    from cosmos_hpc.hub.datasets import located
    from cosmos_hpc.planning.plans import make_plan

    to_recipe, to_cluster = split_overrides(overrides)
    if swept := swept_values(to_recipe):
        key, values = next(iter(swept.items()))
        raise RequestError(
            f"a plan is of one run, and {key} has {len(values)} values: give one of them, as in "
            f"{key}={values[0]}; submit --dry-run shows all runs of a sweep"
        )
    resolved, profile = load_recipe(recipe, to_recipe), load_cluster(cluster, to_cluster)
    there = fitted_to_data(located(resolved))
    videos = len(list_input(there)[1]) if there.data.input or not there.trains else None
    return make_plan(there, profile, videos)


def submit(
    recipe: str,
    cluster: str = BUILT_IN,
    overrides: Overrides = (),
    name: str | None = None,
    stages: Sequence[str] | None = None,
    console: Console | None = None,
    dry_run: bool = False,
    output: str | Path | None = None,
    wait: bool = True,
) -> Run | Sweep:
    """Run a recipe on a cluster, or continue the run of that name: completed work is skipped.

    On this machine this returns when the work is done, on a Slurm cluster when it is queued.

    Settings of the model and the training may have several values, as in
    ``train.learning_rate=1e-4,3e-4``: then there is a run for each combination of them, named after
    ``name`` and its values, and all share one preparation.

    Args:
        recipe: name of a recipe, or path of a YAML file.
        cluster: name of a profile, or path of a YAML file.
        overrides: ``key=value`` for the recipe, ``cluster.key=value`` for the cluster: a list of
            them, or a dict, ``{"train.max_steps": 10}`` or ``{"train": {"max_steps": 10}}``.
        name: of the run, or of the sweep. None: one that follows from the request, so that
            repeating it continues.
        stages: which stages to run, of those that are not done. None: all but optional ones.
        console: where to show progress.
        dry_run: prepare the run folder and leave in :attr:`Run.dry_run` what would be started.
        output: folder for the scripts of a dry run.
        wait: False: return as soon as the work has begun, also on this machine, where a process of
            its own goes on with it when this one ends. :meth:`Run.status` and :meth:`Run.watch`
            show how far it is, :meth:`Run.cancel` stops it.

    Returns:
        The run; a :class:`Sweep`, a sequence of runs, where settings have several values.

    Raises:
        RequestError: the request is wrong; nothing was started.
        WorkError: a stage failed.
    """
    from cosmos_hpc.backends.launch import make_request, start
    from cosmos_hpc.config.sweeps import combinations

    to_recipe, to_cluster = split_overrides(overrides)
    if swept := combinations(recipe, to_recipe):
        profile = load_cluster(cluster, to_cluster)
        return submit_sweep(swept, profile, name, stages, console, dry_run, output, wait)
    resolved, profile = load_recipe(recipe, to_recipe), load_cluster(cluster, to_cluster)
    chosen = default_stages() if stages is None else stages
    detached = not wait and not dry_run and open_backend(profile).returns_when == "done"
    request = make_request(resolved, profile, name, chosen, dry_run or detached)
    if detached:
        from cosmos_hpc.backends.detached import carry_out

        # All that can be wrong with the request is said here, before anything begins.
        open_backend(profile).check_request(replace(request, dry_run=False))
        start(request, profile, console or usual_console())
        carry_out([request.folder], request.stages)
        return Run(request.folder.path)
    text = start(request, profile, console or usual_console(), Path(output) if output else None)
    return Run(request.folder.path, dry_run=text)
