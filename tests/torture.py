"""Kills workers, jobs, steps, submits and nodes at random, for as long as one likes.

Boots the Slurm of the tests, prepares videos once undisturbed, and then again and again while
things happen to it. Whatever happened, the tokens must be the same, byte by byte. Needs what the
tests of Slurm need (docs/development.md):

    python tests/torture.py --seconds 3600 --seed 1

The seed decides what happens, to what, and after how long; how far the work is by then depends on
the machine. Ends with exit code 1, and leaves the folder, at the first run that differs or does not
end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.slurm.lab import NODES, Lab
from tests.slurm.login import Login
from tests.slurm.test_interruptions import PREPARE, digests, worker

SHARDS, VIDEOS = 4, 120
#: One clip at a time, so that there are many moments to be interrupted at.
SLOWLY = (
    "data.batch_size=1",
    "data.decoders=2",
    f"data.videos_per_shard={VIDEOS // SHARDS}",
    "cluster.retries=100",
    "cluster.requeues=1000",
)
#: Seconds between two events, and seconds after which a run has to end by itself.
PAUSES, TIMEOUT = (0.5, 8.0), 900.0


class Torture:
    """A run, and what can happen to it.

    Args:
        login: of the cluster.
        name: of the run.
        videos: what it prepares.
        chance: decides.
    """

    def __init__(self, login: Login, name: str, videos: Path, chance: random.Random) -> None:
        self.login, self.name, self.chance = login, name, chance
        self.words = ("recipe=ar_tiny", "cluster=mine", f"data.input={videos}", *SLOWLY, *PREPARE)

    def submit(self, kill_after: float | None = None) -> None:
        """The same submit again; killed after so many seconds."""
        words = ["-m", "cosmos_hpc", "submit", *self.words, "--name", self.name]
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.login.home,
            env=self.login.lab.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=kill_after)
        process.kill()
        process.wait()

    def events(self) -> dict[str, Callable[[], bool]]:
        """What can happen, by name; each says whether it found something to happen to."""
        return {
            "kill a worker": lambda: self._signal_worker(signal.SIGKILL),
            "terminate a worker": lambda: self._signal_worker(signal.SIGTERM),
            "warn a job": lambda: self._job("scancel", "--signal=USR1", "--batch"),
            "kill a script": lambda: self._job("scancel", "--signal=KILL", "--batch"),
            "queue a job again": lambda: self._job("scontrol", "requeue"),
            "cancel a job": lambda: self._job("scancel"),
            "lose a step": self._lose_step,
            "lose a node": self._lose_node,
            "kill a submit": self._kill_submit,
            "cancel the run": lambda: self.login.command("cancel", self.name).code == 0,
        }

    def _signal_worker(self, number: int) -> bool:
        pid = worker(self.login, self.name, "preprocess", self.chance.randrange(SHARDS))
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, number)
        return pid is not None

    def _job(self, *command: str) -> bool:
        jobs = [j for stage in STAGES for j in self.login.jobs(self.name, stage)]
        if jobs:
            self.login.lab.run(*command, self.chance.choice(jobs), check=False)
        return bool(jobs)

    def _lose_step(self) -> bool:
        """srun waits for ever for a step that Slurm has lost: somebody has to end its job."""
        steps = list(steps_of(self.login.lab))
        if not steps:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.chance.choice(steps), signal.SIGKILL)
        time.sleep(2)
        self.login.command("cancel", self.name, "--now")
        return True

    def _lose_node(self) -> bool:
        node = f"nodename={self.chance.choice(NODES)}"
        self.login.lab.run("scontrol", "update", node, "state=down", "reason=torture")
        time.sleep(self.chance.uniform(0, 3))
        self.login.lab.run("scontrol", "update", node, "state=resume", check=False)
        return True

    def _kill_submit(self) -> bool:
        self.submit(kill_after=self.chance.uniform(0.2, 4))
        return True

    def state(self) -> str:
        """Of the last stage."""
        return str(self.login.stage(self.name, PREPARE[1].split(",")[-1])["state"])

    def run(self, happened: Counter[str], until: float) -> bool:
        """From the first submit to the end; whether all is done."""
        self.submit(kill_after=self.chance.choice([None, self.chance.uniform(0.5, 5)]))
        deadline = min(until, time.monotonic() + TIMEOUT / 3)
        names = sorted(self.events())
        while time.monotonic() < deadline:
            if not (self.login.run(self.name) / "run.json").exists():
                self.submit()
            if self.state() == "done":
                return True
            time.sleep(self.chance.uniform(*PAUSES))
            name = self.chance.choice(names)
            if self.events()[name]():
                happened[name] += 1
                print(json.dumps({"run": self.name, "event": name}), flush=True)
            self._go_on()
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and self.state() != "done":
            self._go_on()
            time.sleep(1)
        return self.state() == "done"

    def _go_on(self) -> None:
        """What a person does who finds the run failed or stopped."""
        if (self.login.run(self.name) / "run.json").exists():
            self.login.command("retry", self.name)
        else:
            self.submit()


STAGES = PREPARE[1].split(",")


def steps_of(lab: Lab) -> Iterator[int]:
    """Processes that serve the steps of jobs of this lab; not those of their scripts."""
    conf = f"SLURM_CONF={lab.environment['SLURM_CONF']}".encode()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            if not words.startswith(b"slurmstepd: [") or b".batch]" in words:
                continue
            if conf in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def main() -> int:
    """Run after run until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance, happened = random.Random(arguments.seed), Counter[str]()
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    number = 0
    with Lab(folder) as lab:
        login = Login(lab, folder / "login")
        videos = make_videos(folder)
        whole = Torture(login, "undisturbed", videos, chance)
        whole.submit()
        login.wait("undisturbed", "finalize", "done", "failed", seconds=TIMEOUT)
        expected = digests(login, "undisturbed")
        until = time.monotonic() + arguments.seconds
        while time.monotonic() < until:
            number += 1
            torture = Torture(login, f"run{number}", videos, chance)
            whole_again = torture.run(happened, until)
            if not whole_again or digests(login, torture.name) != expected:
                print(f"{torture.name} {'differs' if whole_again else 'did not end'}; see {folder}")
                print(login.explain(torture.name))
                return 1
            print(json.dumps({"run": torture.name, "same": True}), flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{number} runs with the same tokens, seed {arguments.seed}: {dict(happened)}")
    return 0


def make_videos(folder: Path) -> Path:
    """Videos of eight different contents."""
    from cosmos_hpc.worker.video.samples import SampleVideos, make_sample_videos

    contents, videos = folder / "contents", folder / "videos"
    contents.mkdir()
    videos.mkdir()
    make_sample_videos(contents, SampleVideos(count=8, frames=20, height=96, width=160))
    made = sorted(contents.iterdir())
    for video in range(VIDEOS):
        shutil.copyfile(made[video % len(made)], videos / f"{video:03d}.mp4")
    return videos


if __name__ == "__main__":
    raise SystemExit(main())
