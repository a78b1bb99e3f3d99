"""A run, to look at and to continue, and what is generated from one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_hpc.backends.kinds import (
    AnyBackend,
    load_cluster,
    open_backend,
    read_cluster,
    seconds_between_looks,
    wait_for_end,
)
from cosmos_hpc.config.clusters import BUILT_IN, OVERRIDE_PREFIX, Cluster
from cosmos_hpc.config.overrides import Overrides, as_list
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.completion import report_is_current
from cosmos_hpc.runs.display import Page
from cosmos_hpc.runs.folder import RunFolder, find_run
from cosmos_hpc.runs.logs import follow
from cosmos_hpc.runs.samples import Samples, read_samples
from cosmos_hpc.runs.sources import saved_checkpoint
from cosmos_hpc.runs.stages import (
    STAGES,
    asked_for,
    default_stages,
    is_done,
    marker_path,
    stage_and_following,
    stage_named,
    stages_of,
)
from cosmos_hpc.runs.status import RunState, read_state
from cosmos_hpc.runs.watch import view_run, watch
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console, usual_console
from cosmos_hpc.utils.settings import apply_overrides, validate

if TYPE_CHECKING:
    import pandas

    from cosmos_hpc.backends.base import Request

#: Columns of the metrics that are there also while no step is.
_METRICS = (
    "step",
    "loss",
    "validation_loss",
    "learning_rate",
    "seconds",
    "tokens_per_second",
    "time",
)


class Run:
    """A run folder, to look at and to continue.

    Args:
        name: path of the folder, or the run's name below ``runs``.
        runs: folder of runs.
        dry_run: see the attribute.

    Attributes:
        dry_run: what a dry run would do, as shell text, or the scripts that it wrote, one per line;
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

    def __str__(self) -> str:
        return self.status().render()

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that the training ended with, or the last whole one; None before that."""
        return saved_checkpoint(self.folder)

    def _backend(self) -> AnyBackend:
        return open_backend(read_cluster(self.folder.cluster_file))

    def status(self) -> RunState:
        """State of the run and its stages, from what is on the disk and in the queue."""
        return read_state(self.folder, self._backend().queue(self.folder))

    def watch(self) -> None:
        """Show the state as it changes, until nothing works on the run.

        On a terminal and in a notebook it is drawn in place. Interrupting this does not stop the
        run.
        """
        watch(lambda: view_run(self.status()), sys.stdout, seconds_between_looks(self.folder))
        wait_for_end([self.folder])

    def logs(self, stage: str | None = None, task: int | None = None) -> dict[str, Path]:
        """Log files of the latest attempts, by ``STAGE`` or ``STAGE.TASK``.

        Raises:
            RequestError: no such stage or task, or nothing logged for it yet.
        """
        found = self._logs(stage, task)
        if not found:
            what = f"{stage or 'the run'}{'' if task is None else f'.{task}'}"
            raise RequestError(f"run {self.folder.name} has no log of {what} yet")
        return found

    def follow(self, stage: str | None = None, task: int | None = None) -> Iterator[str]:
        """Text as it is added to the newest log, stage after stage, until nobody works on the run.

        Raises:
            RequestError: no such stage or task.
        """
        self._logs(stage, task)
        backend = self._backend()
        yield from follow(self.folder, lambda: backend.is_working(self.folder), stage, task)

    def _logs(self, stage: str | None, task: int | None) -> dict[str, Path]:
        found = self._backend().logs(self.folder, stage, task)
        # Before the run was continued with other settings it may have had more tasks.
        if stage is not None and not found:
            _check_task(self.folder, stage, task)
        return found

    def cancel(self, now: bool = False, console: Console | None = None) -> int:
        """Ask what works on this run to stop at a safe point, and wait until nothing does.

        A shard stops after the clips in flight, a training after a step, which it saves; workers
        that a killed submit has left behind stop as well, and what is only queued is taken out of
        the queue. Submitting again continues from there.

        Args:
            now: kill the jobs of a Slurm cluster instead; what they did since the last safe point
                is lost.
            console: where to say what is waited for.

        Returns:
            How many processes or jobs worked on it or were queued; one for a run of a sweep whose
            turn has not come.

        Raises:
            RequestError: Slurm does not answer.
        """
        return self._backend().cancel(self.folder, now, console or usual_console())

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
        from cosmos_hpc.backends.launch import start

        request = retry_request(self.folder, stage, task)
        start(request, read_cluster(self.folder.cluster_file), console or usual_console())

    def generate(self, *overrides: str | Overrides, name: str | None = None) -> Run:
        """Generate from the newest checkpoint of this run; see :func:`generate`.

        Args:
            overrides: ``key=value``, ``input=FILE`` among them; or one list of them, or a dict.
            name: of the new run.
        """
        texts = [[one] if isinstance(one, str) else as_list(one) for one in overrides]
        return generate(str(self.path), [text for several in texts for text in several], name=name)

    def evaluate(self, console: Console | None = None) -> dict[str, Any] | None:
        """Scores on held-out clips; what they lack is made first, samples included.

        Returns:
            What stands in ``evaluation/metrics.json``; None where the work is queued.

        Raises:
            RequestError: the run has no trained weights yet, or none at all.
            WorkError: a stage failed.
        """
        self._check_trained("evaluate")
        self.carry_out(["generate", "evaluate"], console)
        scores: dict[str, Any] | None = files.read_json(self.folder.evaluation.metrics)
        return scores if self._is_done("evaluate") else None

    def _check_trained(self, stage: str) -> None:
        recipe, folder = self.folder.recipe(), self.folder
        if not recipe.trains:
            raise RequestError(f"run {folder.name} only generates: there is nothing to {stage}")
        if not self._is_done("train"):
            raise RequestError(
                f"run {folder.name} cannot {stage} yet: its training is not done, as cosmos-hpc "
                f"status shows"
            )

    def _is_done(self, stage: str) -> bool:
        recipe = self.folder.recipe()
        sizes = {found.name: found.tasks for found in stages_of(self.folder, recipe)}
        return all(is_done(self.folder, recipe, stage, task) for task in range(sizes[stage]))

    def carry_out(self, stages: Sequence[str], console: Console | None = None) -> None:
        """Start those of some stages of this run that are neither done nor queued.

        Raises:
            RequestError: the cluster does not take it.
            WorkError: a stage failed.
        """
        from cosmos_hpc.backends.base import Request
        from cosmos_hpc.backends.launch import start

        if all(self._is_done(stage) for stage in stages):
            return
        request = Request(self.folder, self.folder.recipe(), stages)
        start(request, read_cluster(self.folder.cluster_file), console or usual_console())

    def losses(self) -> list[tuple[int, float]]:
        """(step, training loss in nats per token) of every step so far."""
        return self._metric("loss")

    def validation_losses(self) -> list[tuple[int, float]]:
        """(step, validation loss in nats per token) of every validation so far."""
        return self._metric("validation_loss")

    def _metric(self, name: str) -> list[tuple[int, float]]:
        rows = files.read_jsonl(self.folder.train.metrics)
        return [(row["step"], row[name]) for row in rows if name in row]

    def metrics(self) -> pandas.DataFrame:
        """The metrics of the training so far, one row per step or validation.

        Columns are ``step``, ``loss`` and ``validation_loss`` (nats per token, one of them missing
        in each row), ``learning_rate``, ``seconds`` of the step, ``tokens_per_second`` of all
        ranks, ``time`` (Unix), and what else ``train/metrics.jsonl`` holds.

        Raises:
            RequestError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise RequestError(
                "metrics() gives a pandas DataFrame, and pandas is not installed: pip install "
                "pandas, or take losses() and validation_losses()"
            ) from None
        rows = files.read_jsonl(self.folder.train.metrics)
        columns = dict.fromkeys([*_METRICS, *(name for row in rows for name in row)])
        return pandas.DataFrame(rows, columns=[*columns])

    def samples(self) -> Samples:
        """The generated videos, which a notebook shows side by side; none before there are any."""
        return read_samples(self.folder)

    def report(self, console: Console | None = None) -> Page:
        """The page that shows what the run has done; it is made where there is none, or news.

        Args:
            console: where to show progress.

        Raises:
            RequestError: it is only queued, on a cluster, or somebody works on the run.
            WorkError: it could not be made.
        """
        folder = self.folder
        marker = marker_path(folder, "report")
        if not report_is_current(folder, marker):
            self.carry_out(["report"], console)
        if not report_is_current(folder, marker):
            raise RequestError(f"the report of run {folder.name} is queued; ask again later")
        return Page(folder.path / files.read_json(marker)["page"])


def retry_request(folder: RunFolder, stage: str | None = None, task: int | None = None) -> Request:
    """What :meth:`Run.retry` starts.

    Raises:
        RequestError: there is no such stage or task.
    """
    from cosmos_hpc.backends.base import Request

    if stage is not None:
        _check_task(folder, stage, task)
    asked = asked_for(folder)
    names = list(STAGES) if stage is None else stage_and_following(stage)
    if stage is None or stage in asked:
        names = [name for name in names if name in asked]
    tasks = None
    if task is not None:
        names, tasks = names[:1], [task]
    return Request(folder, folder.recipe(), names, tasks)


def _check_task(folder: RunFolder, stage: str, task: int | None) -> None:
    """Refuse a stage that a run does not have, and a task that the stage does not."""
    stage_named(stage)
    sizes = {found.name: found.tasks for found in stages_of(folder, folder.recipe())}
    if stage not in sizes:
        raise RequestError(
            f"there is no stage {stage} in run {folder.name}; there are {', '.join(sizes)}"
        )
    tasks = sizes[stage]
    if task is not None and not 0 <= task < tasks:
        known = f"its tasks are 0 to {tasks - 1}" if tasks > 1 else "its only task is 0"
        raise RequestError(f"there is no {stage}.{task} in run {folder.name}: {known}")


def split_overrides(overrides: Overrides) -> tuple[list[str], list[str]]:
    """Overrides of the recipe, and of the cluster, without the word that says so."""
    changes = as_list(overrides)
    to_cluster = [o for o in changes if o.startswith(OVERRIDE_PREFIX)]
    to_recipe = [o for o in changes if not o.startswith(OVERRIDE_PREFIX)]
    return to_recipe, [o.removeprefix(OVERRIDE_PREFIX) for o in to_cluster]


def generate(
    source: str,
    overrides: Overrides = (),
    cluster: str | None = None,
    recipe: str | None = None,
    name: str | None = None,
    console: Console | None = None,
    dry_run: bool = False,
    output: str | Path | None = None,
) -> Run:
    """Continue pictures or videos with the weights of a run, a checkpoint or a published model.

    Samples that are there already are not made again.

    Args:
        source: name or path of a run, path of a checkpoint in any form, name or path of a recipe,
            or the Hub repository that a recipe names.
        overrides: ``input=FILE``, ``prompt=TEXT`` and other settings of the recipe, where those of
            its section ``generate`` may stand without that word; ``cluster.key=value``.
        cluster: name of a profile, or path of a YAML file; None: that of the run which made the
            weights, else this machine.
        recipe: whose model the weights are of, where the source does not say so.
        name: of the new run, as for :func:`submit`.
        console: where to show progress.
        dry_run: prepare the run folder and leave in :attr:`Run.dry_run` what would be started.
        output: folder for the scripts of a dry run.

    Returns:
        A run of its own, with the samples in ``generated``.

    Raises:
        RequestError: the request is wrong; nothing was started.
        WorkError: no sample could be made, or a stage failed.
    """
    from cosmos_hpc.backends.launch import make_request, start
    from cosmos_hpc.runs.sources import find_source, generation_recipe

    to_recipe, stripped = split_overrides(overrides)
    found = find_source(source, recipe)
    resolved = generation_recipe(found, to_recipe)
    if cluster is None and found.run:
        profile = _cluster_beside(found.run, stripped)
    else:
        profile = load_cluster(cluster or BUILT_IN, stripped)
    request = make_request(resolved, profile, name, default_stages(), dry_run)
    text = start(request, profile, console or usual_console(), Path(output) if output else None)
    return Run(request.folder.path, dry_run=text)


def _cluster_beside(run: RunFolder, overrides: Sequence[str]) -> Cluster:
    """The cluster that a run was submitted to, for another run in the same folder."""
    profile = read_cluster(run.cluster_file)
    data = {**profile.as_dict(), "runs": str(run.path.parent)}
    return validate(type(profile), apply_overrides(data, overrides, type(profile)), "the cluster")
