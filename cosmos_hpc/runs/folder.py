"""The run folder: everything of a run in one place that can be moved, read and resumed.

::

    run.json, recipe.yaml, cluster.yaml, plan.json    what was asked for, and by which versions
    code/DIGEST/cosmos_hpc/                           the code that it runs
    stages/STAGE.json                                 the spec that a stage's command reads
    logs/                                             of every attempt; index.jsonl lists them
    data/videos.jsonl, data/shards.json               the pinned list of videos and its shards
    tokenizer/, tokens/, train/                       results, each with a marker once whole
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import platform
import re
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.shards import balanced_bounds, folders_above
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.planning.plans import Plan
from cosmos_hpc.runs.snapshots import git_state, installed_versions, snapshot_code
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import dump_yaml, flatten, load_mapping, validate

#: Settings that may change when a run is continued: they decide how far or how to go on, not what
#: the finished parts contain.
CHANGEABLE = {
    "data.max_failed_fraction",
    "data.batch_size",
    "data.join",
    "data.probe",
    "data.decoders",
    "train.max_steps",
    "train.save_every",
    "train.keep_checkpoints",
    "train.validate_every",
    # Any layout reads the checkpoints of any other.
    "train.gpus",
    "train.tensor_parallel",
    "train.sequence_parallel",
    "train.recompute",
    "train.transformer_impl",
    "train.micro_batch_size",
}

#: Names the file that the script of a job creates to have its worker stop at a safe point.
STOP_VARIABLE = "COSMOS_HPC_STOP"


class RunFolder:
    """Names of everything in a run folder, and nothing else."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).resolve()
        self.name = self.path.name
        self.info = self.path / "run.json"
        self.recipe_file = self.path / "recipe.yaml"
        self.cluster_file = self.path / "cluster.yaml"
        self.plan_file = self.path / "plan.json"
        self.lock = self.path / ".lock"
        #: While it is there, workers stop at the next safe point.
        self.stop_request = self.path / "stages" / "stop"
        #: Scripts of the jobs of a Slurm cluster, as they were submitted last.
        self.scripts = self.path / "scripts"
        #: One line a submitted job.
        self.jobs = self.path / "stages" / "jobs.jsonl"
        self.asked = self.path / "stages" / "asked.json"
        self.logs = self.path / "logs"
        self.log_index = self.logs / "index.jsonl"
        self.videos = self.path / "data" / "videos.jsonl"
        self.shards = self.path / "data" / "shards.json"
        self.tokenizer = self.path / "tokenizer"
        self.tokens = self.path / "tokens"
        self.token_prefix = self.tokens / "tokens"
        self.clips = self.tokens / "clips.jsonl"
        self.failed = self.tokens / "failed.jsonl"
        #: Embeddings of prompts, one a different prompt, and a marker a shard.
        self.prompts = self.tokens / "prompts"
        #: Samples of tasks with text or actions, in the files of NVIDIA's guide.
        self.samples = self.tokens / "samples"
        self.failed_summary = self.tokens / "failed_summary.json"
        self.train = self.path / "train"
        self.checkpoints = self.train / "checkpoints"
        self.metrics = self.train / "metrics.jsonl"
        self.loss_curve = self.train / "loss.png"

    def spec(self, stage: str) -> Path:
        """Spec file of a stage."""
        return self.path / "stages" / f"{stage}.json"

    def error(self, stage: str, task: int) -> Path:
        """Where a failing task leaves its one-sentence reason."""
        return self.path / "stages" / "errors" / f"{stage}.{task}.txt"

    def attempts(self, stage: str, task: int) -> Path:
        """Where the script of a Slurm job notes when it begins and ends to work on a task."""
        return self.path / "stages" / "attempts" / f"{stage}.{task}"

    def task_stop(self, stage: str, task: int) -> Path:
        """While it is there, the worker of this task stops at the next safe point."""
        return self.path / "stages" / "stops" / f"{stage}.{task}"

    def shard(self, index: int) -> Path:
        """Folder of a published shard."""
        return self.tokens / "shards" / f"{index:05d}"

    def task_lock(self, stage: str, task: int) -> Path:
        """What the one process that works on a task holds."""
        return self.path / "stages" / "locks" / f"{stage}.{task}"

    def journal(self, index: int) -> Path:
        """Progress of a shard that is not published yet, one line a clip and one a video."""
        return self.tokens / "partial" / f"{index:05d}.jsonl"

    def in_hand(self, index: int) -> Path:
        """Which videos of a shard are being decoded."""
        return self.journal(index).with_suffix(".in_hand.json")

    def marker(self, stage: str, task: int = 0) -> Path:
        """The file whose presence says that a task of a stage is done."""
        if stage == "preprocess":
            return self.shard(task) / "done.json"
        folders = {"download": self.tokenizer, "finalize": self.tokens, "train": self.train}
        return folders[stage] / "done.json"

    def stop_requested(self) -> bool:
        """Whether this process is to stop: the run is cancelled, or its job nears its end."""
        own = os.environ.get(STOP_VARIABLE)
        return self.stop_request.exists() or bool(own and Path(own).exists())

    def code(self) -> Path:
        """The snapshot of the package that the run uses now."""
        return self.path / "code" / str(files.read_json(self.info)["code"])

    def begun(self) -> bool:
        """Whether it was submitted; a dry run only prepares the folder, but its text may be run."""
        info = files.read_json(self.info)
        if info is None or not info.get("dry_run"):
            return True
        # Scripts note their attempts, and every worker takes the lock of its task.
        traces = (self.attempts("x", 0).parent, self.task_lock("x", 0).parent)
        return self.jobs.exists() or any(any(folder.glob("*")) for folder in traces)

    def forget_plan(self) -> None:
        """Unpin what a dry run has pinned: the request may be another one now."""
        if not self.begun():
            self.shards.unlink(missing_ok=True)

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return validate(Recipe, load_mapping(self.recipe_file), str(self.recipe_file))

    def num_shards(self) -> int:
        """Number of pinned shards; 0 before they are planned."""
        return max(0, len(self.bounds()) - 1)

    def num_videos(self) -> int:
        """Number of pinned videos; 0 before they are planned."""
        return self.bounds()[-1]

    def video_folders(self) -> list[str]:
        """Folders that hold the pinned videos; none before they are planned."""
        pinned = files.read_json(self.shards)
        return [pinned["root"], *pinned["folders"]] if pinned else []

    def bounds(self) -> list[int]:
        """Index of the first video of each pinned shard, and their number; 0 before."""
        pinned = files.read_json(self.shards)
        return list(pinned["bounds"]) if pinned else [0]


def default_name(recipe: Recipe, cluster: Cluster) -> str:
    """A name that the same request always gets, so that repeating it continues the run."""
    wanted = json.dumps([recipe.model_dump(mode="json"), cluster.name], sort_keys=True)
    return f"{recipe.name}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"


def check_name(name: str) -> None:
    """Refuse a run name that is not a plain folder name.

    Raises:
        RequestError: it is empty, begins with a dot or dash, or holds other than letters, digits,
            and ``. _ -``.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise RequestError(
            f"run name {name!r} may hold letters, digits, '.', '_' and '-', "
            f"and begin with none of '.' and '-'"
        )


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


def open_run(
    folder: RunFolder, recipe: Recipe, cluster: Cluster, plan: Plan, dry_run: bool = False
) -> bool:
    """Create the run folder, or check that an existing one continues the same request.

    Args:
        folder: of the run.
        recipe, cluster, plan: resolved.
        dry_run: nothing is going to be started; the next submit may ask for something else.

    Returns:
        Whether the run existed.

    Raises:
        RequestError: the folder holds another run, or something that is no run.
    """
    exists = check_folder(folder, recipe)
    # First: from here on the folder is this request's, and repeating it completes the rest.
    files.write_atomic(folder.recipe_file, dump_yaml(recipe))
    digest = snapshot_code(folder.path / "code")
    new = {"created": _now(), "name": folder.name, "id": uuid.uuid4().hex[:12]}
    info: dict[str, Any] = files.read_json(folder.info) or {**new, "dry_run": True}
    info.update(
        dry_run=dry_run and info.get("dry_run", False),
        submitted=[*info.get("submitted", []), _now()],
        code=digest,
        git=git_state(),
        host=platform.node(),
        versions=installed_versions(),
    )
    files.write_atomic(folder.cluster_file, dump_yaml(cluster))
    files.write_json(folder.plan_file, plan.as_dict())
    files.write_json(folder.info, info)
    return exists


def check_folder(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether there is a run of this request in the folder.

    Raises:
        RequestError: the folder holds another run, or something that is no run.
    """
    if folder.recipe_file.exists():
        if folder.begun():
            _check_same(folder, recipe)
        return True
    # The package's own temporary files begin with a dot: of a submit that was killed early.
    if folder.path.is_dir() and any(not p.name.startswith(".") for p in folder.path.iterdir()):
        raise RequestError(f"{folder.path} exists and is not a run; choose another --name")
    return False


def _check_same(folder: RunFolder, recipe: Recipe) -> None:
    old = flatten(folder.recipe().model_dump(mode="json"))
    new = flatten(recipe.model_dump(mode="json"))
    differ = [k for k in new if old.get(k) != new[k] and k not in CHANGEABLE]
    if differ:
        key = differ[0]
        more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        raise RequestError(
            f"run {folder.name} was made with {key}={old.get(key)}, not {new[key]}{more}; "
            f"choose another --name, or repeat the run's own settings"
        )


def pin_videos(
    folder: RunFolder,
    root: str,
    videos: Sequence[str | dict[str, Any]],
    shards: int,
    costs: tuple[str, Sequence[int]] | None = None,
) -> None:
    """Write the list of videos and the bounds of the shards, once: a continued run keeps them.

    Args:
        folder: the run.
        root: folder that paths are relative to.
        videos: paths, or rows with a ``path`` and more.
        shards: how many.
        costs: a unit and what each video costs in it; None where all cost the same.
    """
    if folder.shards.exists():
        return
    unit, each = costs or ("videos", [1] * len(videos))
    bounds = balanced_bounds(each, shards)
    offsets, crcs = [0], []
    with files.replacing(folder.videos) as f:
        for first, end in itertools.pairwise(bounds):
            rows = ({"path": v} if isinstance(v, str) else v for v in videos[first:end])
            block = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
            f.write(block)
            offsets.append(f.tell())
            crcs.append(zlib.crc32(block))
    pinned = {
        "root": str(Path(root).resolve()),
        "folders": folders_above(v if isinstance(v, str) else v["path"] for v in videos),
        "unit": unit,
        "costs": [sum(each[first:end]) for first, end in itertools.pairwise(bounds)],
        "bounds": bounds,
        "offsets": offsets,
        "crcs": crcs,
    }
    files.write_json(folder.shards, pinned)


def shard_rows(folder: RunFolder, shard: int) -> list[dict[str, Any]]:
    """The pinned rows of a shard, each with a ``path`` and what else the input says of a video.

    Reads no others, however long the list is.

    Raises:
        WorkError: the list is not the one that was pinned.
    """
    pinned = files.read_json(folder.shards)
    begin, end = pinned["offsets"][shard : shard + 2]
    with open(folder.videos, "rb") as f:
        f.seek(begin)
        block = f.read(end - begin)
    if zlib.crc32(block) != pinned["crcs"][shard]:
        raise WorkError(
            f"{folder.videos} is damaged: the rows of shard {shard} are not those that were "
            f"pinned; submit the request again under another --name"
        )
    return [json.loads(line) for line in block.splitlines()]


def shard_videos(folder: RunFolder, shard: int) -> tuple[Path, int, list[str]]:
    """The videos of a shard: the folder they are in, the index of the first, their paths in it.

    Raises:
        WorkError: the list is not the one that was pinned.
    """
    pinned = files.read_json(folder.shards)
    rows = shard_rows(folder, shard)
    return Path(pinned["root"]), pinned["bounds"][shard], [row["path"] for row in rows]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
