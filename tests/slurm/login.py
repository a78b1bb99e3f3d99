"""A login node of the lab: commands of the package in a working folder with a profile."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import Outcome, cosmos_hpc
from tests.slurm.lab import Lab

PROFILE = """\
kind: slurm
gpu_partition: gpu
cpu_partition: cpu
gpu: H100-80
gpus_per_node: 2
gres: gpu:h100
nodes: 2
parallel: 2
"""


@dataclass(frozen=True)
class Login:
    """A working folder on the lab's login node, with the profile ``mine``."""

    lab: Lab
    home: Path

    def __post_init__(self) -> None:
        (self.home / "clusters").mkdir(parents=True)
        (self.home / "clusters" / "mine.yaml").write_text(PROFILE)

    def command(self, *words: object, **env: str) -> Outcome:
        """A command, whatever comes of it."""
        return cosmos_hpc(*words, cwd=self.home, env={**self.lab.environment, **env})

    def submit(self, name: str, *words: object, **env: str) -> Outcome:
        """``submit`` of ar_tiny on the lab, which must be taken."""
        request = ("submit", "recipe=ar_tiny", "cluster=mine", "--name", name)
        outcome = self.command(*request, *words, **env)
        assert outcome.code == 0, outcome.err
        return outcome

    def status(self, name: str) -> dict[str, Any]:
        """What ``status --json`` says."""
        outcome = self.command("status", name, "--json")
        assert outcome.code == 0, outcome.err
        return dict(json.loads(outcome.out))

    def stage(self, name: str, stage: str) -> dict[str, Any]:
        """What ``status --json`` says of a stage."""
        return next(s for s in self.status(name)["stages"] if s["name"] == stage)

    def wait(self, name: str, stage: str, *states: str, seconds: float = 900) -> dict[str, Any]:
        """Wait until a stage is in one of these states."""
        deadline = time.monotonic() + seconds
        while (found := self.stage(name, stage))["state"] not in (states or ("done",)):
            assert time.monotonic() < deadline, self.explain(name)
            self._rest()
        return found

    def _rest(self, seconds: float = 5) -> None:
        """Wait until something has changed in the queue, which is cheap to ask, but not for long.

        What ``status`` costs would be missing to the jobs that are waited for.
        """
        before, deadline = self.queue(), time.monotonic() + seconds
        while time.monotonic() < deadline and self.queue() == before:
            time.sleep(0.2)

    def explain(self, name: str) -> str:
        """All that helps to understand what went wrong."""
        queue = self.lab.run("squeue", "-r")
        logs = self.command("logs", name, "--raw").out[-6000:]
        return f"{self.command('status', name).out}\n{queue}\n{logs}"

    def queue(self, form: str = "%i %T", *flags: str) -> list[str]:
        """Lines of squeue, array tasks one by one."""
        return self.lab.run("squeue", "-h", "-r", "-o", form, *flags).splitlines()

    def jobs(self, name: str, stage: str, state: str = "RUNNING") -> list[str]:
        """Ids of a stage's jobs in a state."""
        rows = (line.split() for line in self.queue("%i %j %T"))
        return [i for i, job, s in rows if job.startswith(f"{stage}.{name}.") and s == state]

    def queued(self, name: str) -> list[str]:
        """Names of a run's jobs in the queue."""
        return [job for job in self.queue("%j") if f".{name}." in job]

    def submitted(self, name: str) -> list[str]:
        """Ids of all jobs that were submitted for a run."""
        lines = (self.run(name) / "stages" / "jobs.jsonl").read_text().splitlines()
        return [json.loads(line)["job"] for line in lines]

    def until(self, condition: Any, seconds: float = 300) -> Any:
        """Wait until a condition holds; returns what it returned."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.2)
        return found

    def run(self, name: str) -> Path:
        """The run folder."""
        return self.home / "runs" / name
