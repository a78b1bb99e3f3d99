"""A sweep: runs of one request that differ in some settings, to look at side by side."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from msgspec.structs import replace

from cosmos_hpc.backends.kinds import (
    open_backend,
    queues_of,
    read_cluster,
    seconds_between_looks,
    wait_for_end,
)
from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.run import Run, retry_request
from cosmos_hpc.runs.comparison import Comparison, compare_runs
from cosmos_hpc.runs.display import Page
from cosmos_hpc.runs.listing import ListedRun, find_sweep, list_runs, render_list
from cosmos_hpc.runs.requirements import install_command
from cosmos_hpc.runs.stages import default_stages
from cosmos_hpc.runs.sweeps import source_of
from cosmos_hpc.runs.watch import view_sweep, watch
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console, usual_console

if TYPE_CHECKING:
    from cosmos_hpc.config.sweeps import Combination
    from cosmos_hpc.runs.folder import RunFolder

#: States of a run on which nothing works, and which is not done.
_BEFORE = ("prepared", "failed", "stopped", "partial")


def submit_sweep(
    combinations: Sequence[Combination],
    cluster: Cluster,
    name: str | None,
    stages: Sequence[str] | None,
    console: Console | None,
    dry_run: bool,
    output: str | Path | None,
    wait: bool,
) -> Sweep:
    """Submit a sweep; see :func:`cosmos_hpc.submit`, whose arguments these are.

    Raises:
        RequestError: the request is wrong; nothing was started.
        WorkError: a stage of a run failed.
    """
    from cosmos_hpc.backends.sweeps import prepare_sweep, start_sweep, sweep_requests

    chosen = default_stages() if stages is None else stages
    requests = sweep_requests(combinations, cluster, name, chosen, dry_run)
    first, text = requests[0], ""
    assert first.member is not None
    if not wait and not dry_run and open_backend(cluster).returns_when == "done":
        from cosmos_hpc.backends.detached import carry_out

        prepare_sweep(requests, cluster)
        carry_out([request.folder for request in requests], first.stages)
    else:
        place = Path(output) if output else None
        text = start_sweep(requests, cluster, console or usual_console(), place)
    return Sweep(first.folder.path.with_name(first.member.sweep), dry_run=text)


class Sweep(Sequence[Run]):
    """The runs of a sweep, in the order of their values; a sequence of :class:`Run`.

    Args:
        name: of the sweep below ``runs``, or its path: that of the folder of runs, and its name.
        runs: folder of runs.
        dry_run: see the attribute.

    Attributes:
        name: of the sweep, which the names of its runs begin with.
        runs: the runs.
        dry_run: what a dry run would do, as for :class:`Run`.

    Raises:
        RequestError: there is no such sweep.
    """

    def __init__(self, name: str | Path, runs: str = "runs", dry_run: str = "") -> None:
        self.name = Path(name).name
        self.runs = [Run(folder.path) for folder in find_sweep(str(name), runs)]
        self.dry_run = dry_run
        if not self.runs:
            raise RequestError(f"no sweep {str(name)!r}; cosmos-hpc runs lists what there is")

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> list[Run]: ...
    def __getitem__(self, index: int | slice) -> Run | list[Run]:
        return self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        return f"Sweep({self.name!r}, {len(self)} runs)"

    def __str__(self) -> str:
        return self.render()

    def _repr_html_(self) -> str:
        return self.compare()._repr_html_()

    def status(self) -> list[ListedRun]:
        """How far each run is, with its swept values; ``queued`` where its turn is to come."""
        folders = [run.folder for run in self.runs]
        listed = list_runs(folders, queues_of(folders))
        return [
            replace(line, state="queued") if line.state in _BEFORE and _has_turn(run) else line
            for run, line in zip(folders, listed, strict=True)
        ]

    def render(self) -> str:
        """One line per run: how far it is, and its swept values."""
        page = f"cosmos-hpc report {self.name} compares them on a page"
        return f"{render_list(self.status())}\n  {page}"

    def watch(self) -> None:
        """Show the runs as they change, until nothing works on any; see :meth:`Run.watch`."""
        every = max(seconds_between_looks(run.folder) for run in self.runs)
        watch(lambda: view_sweep(self.name, self.status()), sys.stdout, every)
        wait_for_end([run.folder for run in self.runs])

    def cancel(self, now: bool = False, console: Console | None = None) -> int:
        """Stop all runs; see :meth:`Run.cancel`. Returns how many processes or jobs there were."""
        # On this machine first those whose turn has not come.
        runs = sorted(self.runs, key=lambda run: files.is_locked(run.folder.lock))
        return sum(run.cancel(now, console) for run in runs)

    def retry(self, console: Console | None = None) -> None:
        """Start what is neither done nor queued of all runs; see :meth:`Run.retry`.

        Raises:
            RequestError: the cluster takes no more jobs; the message says how many runs were
                submitted.
            WorkError: runs failed; the others were carried out.
        """
        from cosmos_hpc.backends.sweeps import leaving_room, start_runs

        # First the one that prepares.
        runs = sorted(self.runs, key=lambda run: source_of(run.folder) is not None)
        requests = leaving_room([retry_request(run.folder) for run in runs])
        clusters = [read_cluster(request.folder.cluster_file) for request in requests]
        start_runs(requests, clusters, console or usual_console())

    def compare(self) -> Comparison:
        """Losses and scores of the runs beside each other, and the settings that differ."""
        return compare_runs([run.folder for run in self.runs])

    @property
    def page(self) -> Path:
        """Where :meth:`report` writes the page that compares the runs."""
        return self.runs[0].path.with_name(f"{self.name}-sweep.html")

    def report(self) -> Page:
        """A page that compares the runs: curves in one picture, scores, swept settings.

        It is made anew, from what the runs have written so far, beside the folders of the runs.

        Raises:
            RequestError: what draws it is not installed.
        """
        try:
            from cosmos_hpc.worker.report.sweep import render
        except ModuleNotFoundError as e:
            raise RequestError(
                f"the page of a sweep is made here, and {e.name} is not installed; "
                f"{install_command('worker')}"
            ) from None

        files.write_atomic(self.page, render(self.name, self.status(), self.compare()))
        return Page(self.page)


def _has_turn(run: RunFolder) -> bool:
    """Whether a process on this machine is to carry out a run, perhaps after others."""
    with contextlib.suppress(WorkError):  # of a file system without locks
        return files.is_locked(run.turn)
    return False


def named(name: str) -> Run | Sweep:
    """A run, or a sweep, by its name or path.

    Raises:
        RequestError: there is neither.
    """
    try:
        return Run(name)
    except RequestError:
        if find_sweep(name):
            return Sweep(name)
        raise


def runs_of(found: Sequence[Run | Sweep]) -> list[Run]:
    """These runs, and those of sweeps in their place."""
    return [run for one in found for run in (one.runs if isinstance(one, Sweep) else [one])]
