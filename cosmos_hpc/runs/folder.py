"""The run folder: everything of a run in one place that can be moved, read and resumed.

::

    run.json, recipe.yaml, cluster.yaml, plan.json    what was asked for, and by which versions
    sweep.json                                        of a run of a sweep: which values it has
    code/DIGEST/cosmos_hpc/                           the code that it runs
    stages/STAGE.json                                 the spec that a stage's worker reads
    logs/                                             of every attempt; index.jsonl lists them
    data/videos.jsonl, data/shards.json               the pinned list of videos and its shards; or,
                                                      in a run that only generates, of its inputs
    tokenizer/, tokens/, train/                       results, each with a marker once complete
    generated/                                        samples: a video, a record and tokens each
    evaluation/, report/                              scores of them, and a page to look at
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.pinned import PinnedVideos
from cosmos_hpc.utils import files
from cosmos_hpc.utils.mappings import load_mapping
from cosmos_hpc.utils.settings import validate

#: Names the file that the script of a job creates to have its worker stop at a safe point.
STOP_VARIABLE = "COSMOS_HPC_STOP"


class Tokens:
    """What preprocessing and finalize write, below ``tokens``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Of the joined ``.bin`` and ``.idx`` files.
        self.prefix = path / "tokens"
        self.clips = path / "clips.jsonl"
        self.failed = path / "failed.jsonl"
        self.failed_summary = path / "failed_summary.json"
        #: Embeddings of prompts, one per distinct prompt, and one marker per shard.
        self.prompts = path / "prompts"
        #: Samples of tasks with text or actions, in the files of NVIDIA's guide.
        self.samples = path / "samples"
        #: How the actions were made alike, where a data set of them has statistics.
        self.action_stats = self.samples / "action_stats.json"

    def shard(self, index: int) -> Path:
        """Folder of a published shard."""
        return self.path / "shards" / f"{index:05d}"

    def journal(self, index: int) -> Path:
        """Progress of a shard that is not published yet, one line per clip and one per video."""
        return self.path / "partial" / f"{index:05d}.jsonl"

    def in_flight(self, index: int) -> Path:
        """Which videos of a shard are being decoded."""
        return self.journal(index).with_suffix(".in_hand.json")


class Training:
    """What the training writes, below ``train``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.loss_curve = path / "loss.png"
        self.done = path / "done.json"


class Generated:
    """Samples, below ``generated``: of each a video, a JSON record and its tokens, by one key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: What the guard has refused and what could not be used: a JSON file each.
        self.refused = path / "refused"
        #: How many samples all array tasks make together; not a marker, and so not ``*.json``.
        self.total = path / "tasks" / "total"

    def video(self, key: str) -> Path:
        """The sample as H.264."""
        return self.path / f"{key}.mp4"

    def tokens(self, key: str) -> Path:
        """Its tokens, clip after clip."""
        return self.path / f"{key}.safetensors"

    def record(self, key: str) -> Path:
        """What it was made from and how; written last."""
        return self.path / f"{key}.json"

    def refusal(self, key: str) -> Path:
        """Why this sample could not be generated."""
        return self.refused / f"{key}.json"

    def markers(self) -> list[Path]:
        """Markers of the array tasks that are done."""
        return sorted((self.path / "tasks").glob("*.json"))

    def records(self) -> list[dict[str, Any]]:
        """Records of all samples, in the order of their keys."""
        return [files.read_json(path) for path in sorted(self.path.glob("*.json"))]


class Evaluation:
    """Scores, below ``evaluation``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.json"
        self.table = path / "table.txt"
        self.videos = path / "videos"

    def truth(self, clip: int) -> Path:
        """The true frames of a clip."""
        return self.videos / f"{clip:04d}-truth.mp4"

    def reconstruction(self, clip: int) -> Path:
        """The true frames, through the tokenizer and back."""
        return self.videos / f"{clip:04d}-tokenizer.mp4"


class RunFolder:
    """The paths of a run's files, and its settings.

    Attributes:
        data: the pinned videos.
        tokens: results of preprocessing.
        train: results of the training.
        generated, evaluation: samples, and scores of them.
        report: the page.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).resolve()
        self.name = self.path.name
        self.info = self.path / "run.json"
        self.recipe_file = self.path / "recipe.yaml"
        self.cluster_file = self.path / "cluster.yaml"
        self.plan_file = self.path / "plan.json"
        #: Of a run of a sweep, see :mod:`cosmos_hpc.runs.sweeps`.
        self.sweep_file = self.path / "sweep.json"
        self.lock = self.path / ".lock"
        self._stages = self.path / "stages"
        #: While it is there, workers stop at the next safe point.
        self.stop_request = self._stages / "stop"
        #: Held by the process that is to carry out a run of a sweep when its turn comes, until then
        #: and while it does.
        self.turn = self._stages / "turn"
        #: The stages that were asked for.
        self.asked = self._stages / "asked.json"
        #: One line a job that was submitted to a queue.
        self.jobs = self._stages / "jobs.jsonl"
        self.logs = self.path / "logs"
        self.log_index = self.logs / "index.jsonl"
        self.data = PinnedVideos(self.path / "data")
        self.tokenizer = self.path / "tokenizer"
        self.tokens = Tokens(self.path / "tokens")
        self.train = Training(self.path / "train")
        self.generated = Generated(self.path / "generated")
        self.evaluation = Evaluation(self.path / "evaluation")
        self.report = self.path / "report" / "report.html"

    def spec(self, stage: str) -> Path:
        """Spec file of a stage."""
        return self._stages / f"{stage}.json"

    def error(self, stage: str, task: int) -> Path:
        """Where a failing task leaves its one-sentence reason."""
        return self._stages / "errors" / f"{stage}.{task}.txt"

    def attempts(self, stage: str, task: int) -> Path:
        """Where the script of a job notes when it begins and ends to work on a task."""
        return self._stages / "attempts" / f"{stage}.{task}"

    def task_stop(self, stage: str, task: int) -> Path:
        """While it is there, the worker of this task stops at the next safe point."""
        return self._stages / "stops" / f"{stage}.{task}"

    def task_lock(self, stage: str, task: int) -> Path:
        """What the one process that works on a task holds."""
        return self._stages / "locks" / f"{stage}.{task}"

    def stop_requested(self) -> bool:
        """Whether this process must stop: the run is cancelled, or its job is about to end."""
        own = os.environ.get(STOP_VARIABLE)
        return self.stop_request.exists() or bool(own and Path(own).exists())

    def forget_stop(self) -> None:
        """Remove a request to stop an earlier attempt than that of this process.

        One that came since this process has the run, or waits for its turn to have it, counts.
        """
        began = self.turn if files.is_locked_here(self.turn) else self.lock
        # Both files are of the same file system, and so are their times.
        with contextlib.suppress(FileNotFoundError):
            if self.stop_request.stat().st_mtime_ns < began.stat().st_mtime_ns:
                self.stop_request.unlink()

    def code(self) -> Path:
        """The snapshot of the package that the run uses now."""
        return self.path / "code" / str(files.read_json(self.info)["code"])

    def id(self) -> str:
        """Distinguishes this run from others of the same name."""
        return str(files.read_json(self.info)["id"])

    def begun(self) -> bool:
        """Whether it was submitted; a dry run only prepares the folder, but its text may be run."""
        info = files.read_json(self.info)
        if info is None or not info.get("dry_run"):
            return True
        # Scripts note their attempts, and every worker takes the lock of its task.
        traces = (self.attempts("x", 0).parent, self.task_lock("x", 0).parent)
        return self.jobs.exists() or any(any(folder.glob("*")) for folder in traces)

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return validate(Recipe, load_mapping(self.recipe_file), str(self.recipe_file))


def action_stats_of(weights: Path) -> Path:
    """Where the copy of a run's action statistics is that goes with weights: in them or beside."""
    if weights.is_dir():
        return weights / "action_stats.json"
    return weights.with_suffix(".action_stats.json")


def find_run(name: str, runs: str = "runs") -> RunFolder:
    """A run by its path, or by its name below the folder of runs.

    Raises:
        RequestError: there is no such run; names those that there are.
    """
    for path in (Path(name), Path(runs) / name):
        if (path / "run.json").is_file():
            return RunFolder(path)
    known = sorted(p.parent.name for p in Path(runs).glob("*/run.json"))
    listed = f"there are {', '.join(known)}" if known else "there is none"
    raise RequestError(
        f"no run {name!r} in {os.path.abspath(runs)}, where {listed}; elsewhere give its path"
    )
