"""The interface of a backend: a place where the stages of a run are carried out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from msgspec import Struct

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.logs import logs_of
from cosmos_hpc.runs.queue import Queue
from cosmos_hpc.runs.sweeps import Membership
from cosmos_hpc.utils import files
from cosmos_hpc.utils.console import Console

if TYPE_CHECKING:
    import nemo_run

    from cosmos_hpc.backends.findings import Finding
    from cosmos_hpc.planning.plans import Plan
    from cosmos_hpc.runs.stages import RunStage

C = TypeVar("C", bound=Cluster)
Q = TypeVar("Q", bound=Queue)
#: What a backend has found to be started.
P = TypeVar("P")


class Request(Struct, frozen=True):
    """A run, and the stages of it to start.

    Attributes:
        folder: of the run, which need not exist yet.
        recipe: resolved; with a layout once there is a plan.
        stages: to start, those of them that are missing.
        tasks: of these stages; None: all that are missing.
        dry_run: only prepare the run folder, and say what would be started.
        member: the sweep that the run belongs to, and its values; None: as its folder says.
        spare_jobs: that a limit of jobs must have room for besides those of this run.
    """

    folder: RunFolder
    recipe: Recipe
    stages: Sequence[str]
    tasks: Sequence[int] | None = None
    dry_run: bool = False
    member: Membership | None = None
    spare_jobs: int = 0


def head_of_dry_run(plan: Plan, run: RunFolder, unchecked: str = "") -> list[str]:
    """What the text of a dry run begins with: the plan, as comments of a shell.

    Args:
        plan: of the run.
        run: its folder.
        unchecked: says what could not be checked on this machine; may be empty.
    """
    return [
        *(f"# {line}" for line in plan.render().splitlines()),
        f"# The run folder {str(run.path)!r} is prepared; nothing was started.",
        "# What is started of it from now on, by retry as well, has these settings.",
        "# These commands do what submit does.",
        *([f"# {unchecked}"] if unchecked else []),
    ]


class Backend(ABC, Generic[C, Q, P]):
    """Executes stages on one kind of cluster; opened with a profile.

    Attributes:
        schema: what profiles of this kind say.
        returns_when: when :meth:`submit` returns: ``done`` or ``queued``.
    """

    schema: ClassVar[type[Cluster]]
    returns_when: ClassVar[str] = "done"

    def __init__(self, cluster: C) -> None:
        self.cluster = cluster

    @abstractmethod
    def check(self) -> list[Finding]:
        """Report what works in the profile and what does not, before anything is started.

        Raises:
            RequestError: the place cannot be asked from here.
        """

    def take_note(self, run: RunFolder) -> None:
        """Record in a run what was started without this package, such as pasted text."""

    def is_elsewhere(self) -> bool:
        """Whether nothing of this place can be asked from this machine: dry runs do without."""
        return False

    @abstractmethod
    def check_request(self, request: Request) -> None:
        """Refuse what this place cannot do, before the run is written.

        Raises:
            RequestError: says what, and what to do.
        """

    @abstractmethod
    def queue(self, run: RunFolder) -> Q:
        """Jobs of a run in the queue or running; asked once per command and passed on."""

    def queues(self, runs: Sequence[RunFolder]) -> list[Queue]:
        """What :meth:`queue` says of each of many runs, as far as it takes to tell their states."""
        return [self.queue(run) for run in runs]

    @abstractmethod
    def prepare(self, request: Request, queue: Q, console: Console) -> P:
        """What is to be started for the stages that are neither done nor queued.

        Args:
            request: what is asked for.
            queue: what :meth:`queue` said of the run, which nobody else can submit meanwhile.
            console: where to say what takes a while.

        Raises:
            RequestError: this place cannot take it.
        """

    @abstractmethod
    def submit(self, request: Request, prepared: P, console: Console) -> None:
        """Start what :meth:`prepare` found.

        Raises:
            RequestError: nothing was started.
            WorkError: a stage failed.
        """

    @abstractmethod
    def render(self, request: Request, prepared: P, plan: Plan) -> str:
        """Shell text that does, when it is pasted, what :meth:`submit` would do."""

    def write(self, request: Request, prepared: P, plan: Plan, folder: Path) -> list[Path]:
        """Write :meth:`render`'s text, in as many scripts as there are; returns the files."""
        path = folder / "submit.sh"
        files.write_atomic(
            path.absolute(), f"#!/bin/bash\nset -e\n{self.render(request, prepared, plan)}\n"
        )
        return [path]

    @abstractmethod
    def cancel(self, run: RunFolder, now: bool, console: Console) -> int:
        """Stop the tasks of a run at a safe point, and wait until they have ended.

        Args:
            run: its folder.
            now: kill it instead, where this place can.
            console: where to say what is waited for.

        Returns:
            How many processes or jobs worked on it or were queued.
        """

    def executor(self, stage: RunStage, run: RunFolder | None, number: int) -> nemo_run.Executor:
        """NeMo-Run's executor for a task of a stage, for other people's experiments.

        Args:
            stage: the stage, with its ranks.
            run: a run folder, so that the task finds all that the run reads. None: one of any run,
                which finds what the profile names.
            number: of the task.

        Raises:
            RequestError: NeMo-Run has none for this kind, or what it needs cannot be had.
        """
        raise RequestError(f"NeMo-Run has no executor for clusters of kind {self.cluster.kind}")

    def task(self, run: RunFolder, stage: RunStage, number: int) -> nemo_run.Script:
        """A task of a stage as NeMo-Run's task, for :meth:`executor`.

        Args:
            run: a run folder that was prepared for this place.
            stage: the stage.
            number: of the task.

        Raises:
            RequestError: NeMo-Run has no executor for this kind, or this place cannot run it.
        """
        raise RequestError(f"NeMo-Run has no executor for clusters of kind {self.cluster.kind}")

    def logs(
        self, run: RunFolder, stage: str | None = None, task: int | None = None
    ) -> dict[str, Path]:
        """Log files of the latest attempts, by ``STAGE`` or ``STAGE.TASK``."""
        return dict(logs_of(run, stage, task))

    def is_working(self, run: RunFolder) -> bool:
        """Whether a process works on a run now; called often while its logs are followed."""
        return self.queue(run).working
