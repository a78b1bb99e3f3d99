"""Starts the runs of a sweep, of which one prepares the tokens for all."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from cosmos_hpc.backends.base import Request
from cosmos_hpc.backends.kinds import open_backend
from cosmos_hpc.backends.launch import make_request, start
from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.sweeps import Combination, run_names
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.runs.create import check_name, default_name
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import list_stages, marker_path, missing_tasks
from cosmos_hpc.runs.sweeps import LEFT_OUT, TAKES_OVER, Membership, choose_source, exists
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console


def sweep_requests(
    combinations: Sequence[Combination],
    cluster: Cluster,
    name: str | None,
    stages: Sequence[str],
    dry_run: bool = False,
) -> list[Request]:
    """The requests of a sweep, that of the run which prepares first.

    Args:
        combinations: one of each run.
        cluster: where.
        name: of the sweep, which the names of its runs begin with; none: one that follows from the
            recipe without the swept settings, and the cluster.
        stages: names of those to start.
        dry_run: see :class:`~cosmos_hpc.backends.base.Request`.

    Raises:
        RequestError: see :func:`~cosmos_hpc.backends.launch.make_request`; or a run has the name.
    """
    settings = [one.settings for one in combinations]
    name = name or default_name(combinations[0].recipe, cluster, without=[*settings[0]])
    check_name(name)
    runs = Path(cluster.runs)
    if (runs / name).exists():
        raise RequestError(f"there is a run {name} in {runs}; choose another --name for the sweep")
    requests = [
        make_request(one.recipe, cluster, of_run, stages, dry_run)
        for one, of_run in zip(combinations, run_names(name, settings), strict=True)
    ]
    source = choose_source([request.folder for request in requests])
    members = [
        Membership(name, own, None if request.folder.path == source.path else source.name)
        for own, request in zip(settings, requests, strict=True)
    ]
    found = [replace(r, member=member) for r, member in zip(requests, members, strict=True)]
    found.sort(key=lambda request: request.folder.path != source.path)
    return leaving_room(found)


def leaving_room(requests: Sequence[Request]) -> list[Request]:
    """The requests, each with the jobs of those after it to leave room for."""
    following = [*itertools.accumulate(map(_jobs, requests[:0:-1]), initial=0)][::-1]
    return [replace(r, spare_jobs=jobs) for r, jobs in zip(requests, following, strict=True)]


def _jobs(request: Request) -> int:
    """Jobs and array tasks that a run lacks, which leaves the shards to another one."""
    run, recipe = request.folder, request.recipe
    names = {*request.stages} - {LEFT_OUT}
    stages = [stage for stage in list_stages(0, recipe) if stage.name in names]
    return sum(len(missing_tasks(run, recipe, stage)) for stage in stages)


def prepare_sweep(requests: Sequence[Request], cluster: Cluster) -> None:
    """Prepare the folders of runs that were not submitted yet, and start nothing.

    Raises:
        RequestError: one of them is wrong; folders that are new were removed again.
    """
    open_backend(cluster).check_request(requests[0])
    new = [request.folder.path for request in requests if not request.folder.path.exists()]
    try:
        for request in requests:
            if not exists(request.folder):
                start(replace(request, dry_run=True), cluster, _Silent())
    except RequestError:
        for path in new:
            shutil.rmtree(path, ignore_errors=True)
        raise


class _Silent(Console):
    """Says nothing: the same is said again when the work begins."""

    def _print(self, text: str, end: str = "\n") -> None:
        pass


def start_sweep(
    requests: Sequence[Request], cluster: Cluster, console: Console, output: Path | None = None
) -> str:
    """Start what is missing of the runs of a sweep, on this machine one run after another.

    A run that fails does not keep the others from their work, unless it was to prepare the tokens.

    Args:
        requests: as :func:`sweep_requests` makes them.
        cluster: where.
        console: where to show progress.
        output: folder for the scripts of a dry run, one folder of each run in it.

    Returns:
        As :func:`~cosmos_hpc.backends.launch.start`, of all runs.

    Raises:
        RequestError: a request is wrong, and nothing was started; or the cluster takes no more
            jobs, and the message says how many runs were submitted.
        WorkError: runs failed.
    """
    if requests[0].dry_run:
        return _dry_runs(requests, cluster, console, output)
    # What can be refused is refused before anything begins.
    prepare_sweep(requests, cluster)
    start_runs(requests, [cluster] * len(requests), console)
    return ""


def start_runs(requests: Sequence[Request], clusters: Sequence[Cluster], console: Console) -> None:
    """Start what is missing of the runs of a sweep, whose folders are prepared.

    Args:
        requests: that of the run which prepares first.
        clusters: where each of them is carried out; all of one kind.
        console: where to show progress.

    Raises:
        RequestError, WorkError: see :func:`start_sweep`.
    """
    runs = [request.folder for request in requests]
    work = [
        functools.partial(start, request, cluster, console)
        for request, cluster in zip(requests, clusters, strict=True)
    ]
    if open_backend(clusters[0]).returns_when == "queued":
        _queue_all(runs, work)
    else:
        one_after_another(runs, work, console)


def _queue_all(runs: Sequence[RunFolder], work: Sequence[Callable[[], object]]) -> None:
    for number, (run, submit) in enumerate(zip(runs, work, strict=True)):
        try:
            submit()
        except RequestError as e:
            if number == 0:
                raise
            raise RequestError(
                f"run {run.name}: {e}. {number} of the {len(runs)} runs of the sweep were "
                f"submitted before it; the same command submits the others"
            ) from None


def one_after_another(
    runs: Sequence[RunFolder], work: Sequence[Callable[[], object]], console: Console
) -> None:
    """Carry out runs on this machine. One that fails, or is cancelled, does not keep the others.

    Unless it was to prepare the tokens of all and has not.

    Args:
        runs: that which prepares first.
        work: what carries each of them out.
        console: where to show progress.

    Raises:
        RequestError: the first run cannot begin.
        WorkError: runs failed, or were stopped.
    """
    failed = []
    with contextlib.ExitStack() as stack:
        turns = [stack.enter_context(_turn(run)) for run in runs]
        for run, turn, carry_out in zip(runs, turns, work, strict=True):
            try:
                with turn:
                    _check_not_cancelled(run)
                    carry_out()
            except (RequestError, WorkError) as e:
                if len(runs) == 1 or not marker_path(runs[0], TAKES_OVER).exists():
                    raise
                console.say(f"error: run {run.name}: {e}")
                failed.append(run.name)
    if failed:
        raise WorkError(
            f"{len(failed)} of the {len(runs)} runs of the sweep failed or were stopped: "
            f"{', '.join(failed)}; the same command resumes them"
        )


def _turn(run: RunFolder) -> contextlib.ExitStack:
    """Tells a cancel that a run is to be carried out here, until this is closed."""
    turn = contextlib.ExitStack()
    # Another process that carries out the sweep tells the same.
    with contextlib.suppress(BlockingIOError):
        turn.enter_context(files.lock(run.turn))
        run.forget_stop()
    return turn


def _check_not_cancelled(run: RunFolder) -> None:
    if run.stop_request.exists():
        # Workers that somebody starts by hand are not meant.
        run.stop_request.unlink()
        raise WorkError("cancelled before its turn")


def _dry_runs(
    requests: Sequence[Request], cluster: Cluster, console: Console, output: Path | None
) -> str:
    if output is None:
        return "\n".join(start(request, cluster, console) for request in requests)
    output = output.absolute()
    written, calls = [], ["#!/bin/bash", "set -e"]
    for request in requests:
        folder = output / request.folder.name
        written.append(start(request, cluster, console, folder))
        calls.append(f"bash {shlex.quote(str(folder / 'submit.sh'))}")
    files.write_atomic(output / "submit.sh", "\n".join([*calls, ""]))
    return "\n".join([*written, str(output / "submit.sh")])
