"""The facts in a run's report, gathered from its folder, without pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import CosmosError, WorkError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.queue import Queue
from cosmos_hpc.runs.repeating import repeat_command
from cosmos_hpc.runs.samples import Samples, read_samples
from cosmos_hpc.runs.stages import asked_for, marker_path
from cosmos_hpc.runs.status import StageState, read_state
from cosmos_hpc.runs.timeline import Stay, read_stays
from cosmos_hpc.utils import files
from cosmos_hpc.utils.mappings import flatten, load_mapping

#: The stage that writes the page, which has nothing to say of itself.
STAGE = "report"
#: Videos whose headers are read for the histogram of their lengths.
_VIDEOS = 400
#: Characters of the end of a failed task's log.
_TAIL = 4000
#: Failed tasks of which that is shown.
_LOGS = 3
#: Settings of a cluster's profile that the page shows. No others: lines of shell may hold secrets.
_OF_CLUSTER = (
    *("name", "kind", "account", "qos", "gpu_partition", "cpu_partition", "container", "image"),
)


@dataclass(frozen=True)
class Failures:
    """Videos that failed in one way.

    Attributes:
        kind: the word for it.
        count: of the videos.
        examples: some of them, ``video`` and ``reason`` of each.
    """

    kind: str
    count: int
    examples: list[dict[str, str]]


@dataclass
class Data:
    """How many videos and clips there are, and which failed.

    Attributes:
        videos, shards: that are pinned.
        clips, padded: of them all, and those filled with their last frame; None before finalize.
        seconds: of all clips together.
        failures: most frequent kind first.
        root: folder that paths of videos are relative to.
        sample: rows of some videos, evenly spaced over all of them, with absolute paths.
    """

    videos: int
    shards: int
    clips: int | None = None
    padded: int | None = None
    seconds: float = 0.0
    failures: list[Failures] = field(default_factory=list)
    root: str = ""
    sample: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Videos that gave no clip."""
        return sum(kind.count for kind in self.failures)


@dataclass
class Training:
    """How the training went.

    Attributes:
        rows: of ``metrics.jsonl``: a step has ``step``, ``loss`` (nats per token),
            ``learning_rate`` and ``seconds``; a validation ``step`` and ``validation_loss``.
        max_steps: that are wanted.
        reference: losses to compare with, by name; none before the training is done.
        clips: in each part of the data; empty before finalize.
        checkpoint: the last one, relative to the run folder; empty before there is one.
    """

    rows: list[dict[str, Any]]
    max_steps: int
    reference: dict[str, float] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)
    checkpoint: str = ""

    def points(self, key: str) -> list[tuple[int, float]]:
        """``(step, value)`` of every row that has it."""
        return [(row["step"], row[key]) for row in self.rows if key in row]


@dataclass
class Facts:
    """All facts on the page.

    Attributes:
        name, path: of the run.
        recipe: resolved.
        info: what ``run.json`` says: dates, code, commit, host, versions.
        plan: what ``plan.json`` says.
        cluster: settings of its profile that are nobody's secret.
        command: that repeats the run.
        stages: their states, without that of the report.
        unfinished: names of those that were asked for and are not done.
        logs: ends of the logs of failed tasks, by the task's label.
        stays: every attempt at a task.
        data, training: None where there is nothing of them yet.
        metrics: what ``evaluation/metrics.json`` says; None before there is one.
        samples: generated videos.
        refused: why others were not made.
        problems: sentences about files that could not be read.
    """

    name: str
    path: Path
    recipe: Recipe
    info: dict[str, Any]
    plan: dict[str, Any]
    cluster: dict[str, Any]
    command: str
    samples: Samples
    stages: list[StageState] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    stays: list[Stay] = field(default_factory=list)
    data: Data | None = None
    training: Training | None = None
    metrics: dict[str, Any] | None = None
    refused: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """``failed``, ``done`` or ``not finished``, of all but the report."""
        if any(stage.errors for stage in self.stages):
            return "failed"
        return "not finished" if self.unfinished else "done"


def gather(run: RunFolder, recipe: Recipe) -> Facts:
    """Read the facts for a run's report, as far as they exist by now.

    Files that are damaged are named in :attr:`Facts.problems`, and what they hold is left out.
    """
    cluster = load_mapping(run.cluster_file) if run.cluster_file.exists() else {}
    facts = Facts(
        name=run.name,
        path=run.path,
        recipe=recipe,
        info=files.read_json(run.info) or {},
        plan=files.read_json(run.plan_file) or {},
        cluster={key: cluster[key] for key in _OF_CLUSTER if cluster.get(key) is not None},
        command=repeat_command(run, recipe, str(cluster.get("name", "local"))),
        samples=read_samples(run),
    )
    of_training = (_data, _training, _metrics) if recipe.trains else ()
    for read in (_stages, _stays, _refused, *of_training):
        try:
            read(facts, run)
        except CosmosError as e:
            facts.problems.append(str(e))
        except (KeyError, TypeError, AttributeError) as e:
            # Of another version, or changed by hand: not in the form that is written today.
            what = read.__name__.strip("_")
            facts.problems.append(f"the {what} of the run cannot be read: {type(e).__name__} {e}")
    return facts


def _stages(facts: Facts, run: RunFolder) -> None:
    state = read_state(run, Queue())
    facts.stages = [stage for stage in state.stages if stage.name != STAGE]
    asked = {*asked_for(run)}
    facts.unfinished = [s.name for s in facts.stages if s.state != "done" and s.name in asked]


def _refused(facts: Facts, run: RunFolder) -> None:
    rows = (files.read_json(path) for path in sorted(run.generated.refused.glob("*.json")))
    facts.refused = [str(row["reason"]) for row in rows]


def _stays(facts: Facts, run: RunFolder) -> None:
    facts.stays = read_stays(run, facts.recipe, without=STAGE)
    wanted = [(stage.name, task) for stage in facts.stages for task in stage.errors][:_LOGS]
    latest = {(stay.stage, stay.task): stay for stay in facts.stays}
    for key in wanted:
        stay = latest.get(key)
        if stay and stay.log.is_file():
            facts.logs[stay.label] = _tail(stay.log)


def _tail(path: Path) -> str:
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - _TAIL))
        text = f.read().decode(errors="surrogateescape")
    # Progress bars overwrite their line.
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.splitlines())


def _data(facts: Facts, run: RunFolder) -> None:
    videos = run.data.num_videos()
    if not videos:
        return
    root = run.data.folders()[0]
    data = Data(videos, run.data.num_shards(), root=root, sample=_some_videos(run, root, videos))
    marker = files.read_json(marker_path(run, "finalize"))
    if marker:
        data.clips, data.padded = marker["clips"], marker["padded"]
        # Where each frame of an episode is a clip, each says how long the episode is.
        data.seconds = sum(
            row.get("seconds", 0.0)
            for row in files.iterate_jsonl(run.tokens.clips)
            if row["clip"] == 0 or not facts.recipe.kind.by_steps
        )
    summary = files.read_json(run.tokens.failed_summary) or {"failed": {}}
    data.failures = [
        Failures(kind, found["count"], found["examples"])
        for kind, found in summary["failed"].items()
    ]
    facts.data = data


def _some_videos(run: RunFolder, root: str, videos: int) -> list[dict[str, Any]]:
    every = -(-videos // _VIDEOS)
    rows: Iterator[dict[str, Any]] = islice(files.iterate_jsonl(run.data.videos), 0, None, every)
    return [{**row, "path": os.path.join(root, row["path"])} for row in rows]


def _training(facts: Facts, run: RunFolder) -> None:
    rows = files.read_jsonl(run.train.metrics)
    marker = files.read_json(marker_path(run, "train")) or {}
    if rows or marker:
        facts.training = Training(
            rows,
            facts.recipe.train.max_steps,
            marker.get("reference", {}),
            marker.get("clips", {}),
            marker.get("checkpoint", ""),
        )


def _metrics(facts: Facts, run: RunFolder) -> None:
    facts.metrics = files.read_json(run.path / "evaluation" / "metrics.json")
    if facts.metrics is not None and "generated" not in facts.metrics:
        facts.metrics = None
        raise WorkError(f"{run.path}/evaluation/metrics.json does not hold what evaluate writes")


def settings_table(recipe: Recipe) -> list[tuple[str, str]]:
    """Every setting of a recipe and its value, as text."""
    flat = flatten(recipe.as_dict())
    return [(key, "" if value is None else str(value)) for key, value in flat.items()]
