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
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from cosmos_hpc import files
from cosmos_hpc.cluster import Cluster
from cosmos_hpc.config import dump_yaml, flatten, load_mapping, validate
from cosmos_hpc.errors import RequestError
from cosmos_hpc.plans import Plan
from cosmos_hpc.recipes import Recipe

#: Settings that may change when a run is continued: they decide how far or how to go on, not what
#: the finished parts contain.
CHANGEABLE = {
    "data.max_failed_fraction",
    "data.batch_size",
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
_PACKAGES = [
    "cosmos-hpc",
    "nemo_run",
    "submitit",
    "huggingface_hub",
    "torch",
    "av",
    "nemo_toolkit",
    "megatron-core",
    "lightning",
    "wandb",
]


#: Beside the snapshot of the package: runs one task with that snapshot.
LAUNCHER = "run_task.py"
_LAUNCHER_TEXT = '''"""Runs one task of one stage: python run_task.py SPEC TASK."""

import sys
import uuid

if __name__ == "__main__":
    from cosmos_hpc.worker.__main__ import main

    sys.exit(main(sys.argv[1:]))
'''


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
        self.logs = self.path / "logs"
        self.log_index = self.logs / "index.jsonl"
        self.videos = self.path / "data" / "videos.jsonl"
        self.shards = self.path / "data" / "shards.json"
        self.tokenizer = self.path / "tokenizer"
        self.tokens = self.path / "tokens"
        self.token_prefix = self.tokens / "tokens"
        self.clips = self.tokens / "clips.jsonl"
        self.failed = self.tokens / "failed.jsonl"
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

    def shard(self, index: int) -> Path:
        """Folder of a published shard."""
        return self.tokens / "shards" / f"{index:05d}"

    def task_lock(self, stage: str, task: int) -> Path:
        """What the one process that works on a task holds."""
        return self.path / "stages" / "locks" / f"{stage}.{task}"

    def journal(self, index: int) -> Path:
        """Progress of a shard that is not published yet, one line a clip and one a video."""
        return self.tokens / "partial" / f"{index:05d}.jsonl"

    def marker(self, stage: str, task: int = 0) -> Path:
        """The file whose presence says that a task of a stage is done."""
        folders = {
            "download": self.tokenizer,
            "preprocess": self.shard(task),
            "finalize": self.tokens,
            "train": self.train,
        }
        return folders[stage] / "done.json"

    def code(self) -> Path:
        """The snapshot of the package that the run uses now."""
        return self.path / "code" / str(files.read_json(self.info)["code"])

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return validate(Recipe, load_mapping(self.recipe_file), str(self.recipe_file))

    def num_shards(self) -> int:
        """Number of pinned shards; 0 before they are planned."""
        pinned = files.read_json(self.shards)
        return len(pinned["bounds"]) - 1 if pinned else 0


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
    listed = f"; runs in {runs}: {', '.join(known)}" if known else f"; {runs} holds no run"
    raise RequestError(f"no run {name!r}{listed}")


def open_run(folder: RunFolder, recipe: Recipe, cluster: Cluster, plan: Plan) -> bool:
    """Create the run folder, or check that an existing one continues the same request.

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
    info: dict[str, Any] = files.read_json(folder.info) or new
    info.update(
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


def snapshot_code(target: Path) -> str:
    """Copy this package below ``target``, unless it is there already.

    Returns:
        A digest of the code, the name of the folder that holds the copy.
    """
    package = Path(__file__).resolve().parent
    sources = sorted(p for p in package.rglob("*") if p.suffix in (".py", ".typed", ".yaml"))
    digest = hashlib.sha256(_LAUNCHER_TEXT.encode())
    for path in sources:
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    name = digest.hexdigest()[:12]
    if not (target / name).exists():
        temporary = target / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        for path in sources:
            copy = temporary / package.name / path.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (temporary / LAUNCHER).write_text(_LAUNCHER_TEXT)
        files.publish(temporary, target / name)
    return name


def git_state() -> dict[str, Any] | None:
    """Commit and changed files of the checkout that this package lies in; None outside one."""
    package = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(package), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        # In site-packages below some other repository the files are not tracked.
        git("ls-files", "--error-unmatch", __file__)
        changed = [line[3:] for line in git("status", "--porcelain").splitlines()]
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": changed}
    except (OSError, subprocess.CalledProcessError):
        return None


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a run stands on, without importing them."""
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def pin_videos(folder: RunFolder, root: str, videos: list[str], shards: int) -> None:
    """Write the list of videos and the bounds of the shards, once: a continued run keeps them."""
    if folder.shards.exists():
        return
    files.write_jsonl(folder.videos, [{"path": path} for path in videos])
    bounds = [round(i * len(videos) / shards) for i in range(shards + 1)]
    files.write_json(folder.shards, {"root": str(Path(root).resolve()), "bounds": bounds})


def shard_videos(folder: RunFolder, shard: int) -> tuple[Path, int, list[str]]:
    """The videos of a shard: the folder they are in, the index of the first, their paths in it."""
    pinned = files.read_json(folder.shards)
    first, end = pinned["bounds"][shard : shard + 2]
    rows = files.read_jsonl(folder.videos)[first:end]
    return Path(pinned["root"]), first, [row["path"] for row in rows]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
