"""A backend as somebody would add one: one task after another, each a process of its own."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import ClassVar, Literal

from cosmos_hpc.backends.base import Backend, Request, head_of_dry_run
from cosmos_hpc.backends.findings import Finding
from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.planning.plans import Plan
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.logs import note_log
from cosmos_hpc.runs.queue import Queue, StageQueue
from cosmos_hpc.runs.stages import RunStage, missing_tasks, stages_of, task_command
from cosmos_hpc.utils.console import Console


class ToyCluster(Cluster, frozen=True, kw_only=True):
    """A place without GPUs.

    Attributes:
        most_videos: of a run.
    """

    kind: Literal["toy"]
    parallel: int = 1
    most_videos: int = 100


Work = list[tuple[RunStage, int]]


class ToyBackend(Backend[ToyCluster, Queue, Work]):
    """Notes what it was asked."""

    schema = ToyCluster
    asked: ClassVar[list[str]] = []

    def check(self) -> list[Finding]:
        return [Finding("ok", f"up to {self.cluster.most_videos} videos")]

    def check_request(self, request: Request) -> None:
        if "train" in request.stages:
            raise RequestError("a toy does not train")

    def queue(self, run: RunFolder) -> Queue:
        self.asked.append("queue")
        waiting = run.path / "waiting"
        return Queue({"finalize": StageQueue({"DREAMING": 1})} if waiting.exists() else {})

    def prepare(self, request: Request, queue: Queue, console: Console) -> Work:
        run, recipe = request.folder, request.recipe
        stages = [s for s in stages_of(run, recipe) if s.name in request.stages]
        return [(s, task) for s in stages for task in missing_tasks(run, recipe, s)]

    def submit(self, request: Request, prepared: Work, console: Console) -> None:
        run = request.folder
        for stage, task in prepared:
            log = run.logs / f"{stage.name}.{task}.log"
            log.parent.mkdir(exist_ok=True)
            with open(log, "wb") as f:
                done = subprocess.run(task_command(run, stage, task), stdout=f, stderr=f)
            note_log(run, stage.name, task, log)
            if done.returncode:
                raise WorkError(f"{stage.name} failed: {log.read_text()}")

    def render(self, request: Request, prepared: Work, plan: Plan) -> str:
        commands = [shlex.join(task_command(request.folder, s, task)) for s, task in prepared]
        return "\n".join([*head_of_dry_run(plan, request.folder), *commands])

    def cancel(self, run: RunFolder, now: bool, console: Console) -> int:
        Path(run.path / "waiting").unlink(missing_ok=True)
        return 1
