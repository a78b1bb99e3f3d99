"""Makes run folders, and decides whether a request continues the run that is there."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import platform
import re
import uuid
from collections.abc import Sequence
from typing import Any

from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.config.generation import Evaluate, Generate
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.planning.plans import Plan
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.snapshots import git_state, installed_versions, snapshot_code
from cosmos_hpc.runs.stages import has_results
from cosmos_hpc.utils import files
from cosmos_hpc.utils.mappings import flatten
from cosmos_hpc.utils.settings import dump_yaml, without_defaults

#: Settings that may change when a run is continued: they decide how far or how to continue, not
#: what the finished parts contain.
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
    # What is done already is not done again; the rest follows what is asked for now.
    "train.learning_rate",
    "train.warmup_steps",
    "train.schedule",
    "train.min_learning_rate",
    "train.validate_first",
    "train.tensorboard",
    "train.wandb.project",
    "train.wandb.entity",
    "train.wandb.tags",
    # Any layout reads the checkpoints of any other.
    "train.gpus",
    "train.tensor_parallel",
    "train.context_parallel",
    "train.sequence_parallel",
    "train.recompute",
    "train.recompute_layers",
    "train.transformer_impl",
    "train.fusions",
    "train.gradient_precision",
    "train.moment_precision",
    "train.overlap_communication",
    "train.micro_batch_size",
    # Samples and scores of other settings are made again.
    *(f"generate.{name}" for name in Generate.__struct_fields__ if name != "input"),
    *(f"evaluate.{name}" for name in Evaluate.__struct_fields__),
}


def default_name(recipe: Recipe, cluster: Cluster, without: Sequence[str] = ()) -> str:
    """A name that the same request always gets, so that repeating it continues the run.

    Args:
        recipe, cluster: resolved, without a layout.
        without: settings of the recipe that the name does not depend on.
    """
    # Without defaults: a later version may have more settings, and the request is still the same.
    settings = without_defaults(recipe)
    for key in without:
        *sections, last = key.split(".")
        holder = functools.reduce(lambda found, section: found.get(section, {}), sections, settings)
        holder.pop(last, None)
    wanted = json.dumps([settings, cluster.name], sort_keys=True)
    what = "" if recipe.trains else "generate-"
    return f"{recipe.name}-{what}{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"


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
        if keeps_settings(folder):
            _check_same(folder, recipe)
        return True
    # The package's own temporary files begin with a dot: of a submit that was killed early.
    if folder.path.is_dir() and any(not p.name.startswith(".") for p in folder.path.iterdir()):
        raise RequestError(f"{folder.path} exists and is not a run; choose another --name")
    return False


def keeps_settings(run: RunFolder) -> bool:
    """Whether there is anything in a run that was made with its settings, or is being made."""
    if not (run.recipe_file.exists() and run.begun()):
        return False
    locks = run.task_lock("x", 0).parent
    return has_results(run) or any(map(files.is_locked, locks.glob("*")))


def _check_same(folder: RunFolder, recipe: Recipe) -> None:
    old = flatten(folder.recipe().as_dict())
    new = flatten(recipe.as_dict())
    differ = [k for k in new if old.get(k) != new[k] and k not in CHANGEABLE]
    if differ:
        key = differ[0]
        more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        raise RequestError(
            f"run {folder.name} was made with {key}={old.get(key)}, not {new[key]}{more}; "
            f"choose another --name, or repeat the run's own settings"
        )


def forget_plan(folder: RunFolder) -> None:
    """Unpin what a dry run has pinned, or a run without results: it may be another request now."""
    if not keeps_settings(folder):
        folder.data.shards.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
