"""Converts checkpoints: published PyTorch weights and NeMo checkpoints."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.checkpoints.stored import Weights, same_sizes
from cosmos_hpc.models.checkpoints.writer import (
    WriteJob,
    write_nemo_weights,
    write_safetensors,
    write_torch_file,
)
from cosmos_hpc.models.config import Architecture, ModelConfig
from cosmos_hpc.runs.folder import action_stats_of
from cosmos_hpc.utils import files
from cosmos_hpc.utils.imports import large_imports
from cosmos_hpc.utils.progress import ByteProgress, gigabytes, say
from cosmos_hpc.worker.requests import Conversion, check_conversion, check_new

_FILE_WRITERS = {".pt": write_torch_file, ".safetensors": write_safetensors}


def convert(source: Path, target: Path, settings: Conversion) -> None:
    """Write the weights of ``source`` to ``target``, one at a time.

    Args:
        source: a ``.pt`` or ``.safetensors`` file, a folder of these, or a NeMo checkpoint; where
            that holds adapters, they are merged into the weights that they were trained beside.
        target: ends in ``.pt`` or ``.safetensors`` for published weights, else becomes the folder
            of a NeMo checkpoint, which training with any tensor-parallel size can start from.
        settings: see there.

    Raises:
        RequestError: see :func:`~cosmos_hpc.worker.requests.check_conversion`; or the source is
            damaged or of another model, or the target does not fit on the disk. There is no target
            then.
        WorkError, OSError: the target could not be written. There is none then either.
    """
    check_conversion(source, target, settings)
    weights = open_weights(source, Path(settings.base) if settings.base else None)
    model = _model(weights, settings.recipe)
    is_file = target.suffix in _FILE_WRITERS
    if not is_file and not isinstance(model, ModelConfig):
        raise RequestError(
            f"no recipe has a model of the sizes of {source}, and a NeMo checkpoint must say what "
            f"clips it is for; name a recipe (or the path of your own) with recipe=NAME"
        )
    weights.expect(model)
    stored = weights.dtype()
    dtype = getattr(torch, settings.dtype) if settings.dtype else stored
    progress = ByteProgress("converted", model.num_parameters * dtype.itemsize)
    job = WriteJob(weights, model, dtype, lambda size: progress.update(progress.done + size))
    temporary = target.with_name(f".{target.name}.tmp")
    _check_disk(job.num_bytes, target, temporary)
    say(f"{gigabytes(job.num_bytes)} of {dtype} weights from {source} to {target}")
    with _alone(target), _removed_after(temporary):
        # Of a conversion that has just ended.
        check_new(target)
        try:
            if is_file:
                _FILE_WRITERS[target.suffix](job, temporary)
            else:
                _write_nemo(job, model, temporary)
        except RuntimeError as e:
            # PyTorch's writer does not say what the operating system told it.
            reason = str(e).partition("\n")[0]
            raise WorkError(f"cannot write {target}, is the disk full? {reason}") from None
        check_new(target)
        stats = files.read_json(action_stats_of(source))
        if stats and not is_file:
            files.write_json(action_stats_of(temporary), stats)
        files.publish(temporary, target)
        if stats and is_file:
            files.write_json(action_stats_of(target), stats)


def _model(weights: Weights, recipe: str | None) -> Architecture:
    """The model of a recipe where one is named or has these sizes; else only the sizes."""
    if recipe is not None:
        return load_recipe(recipe).model_for_clips()
    sizes = weights.sizes()
    # The shortest name is the plain recipe; others with the same model prepare other clips.
    for name in sorted(recipe_names(), key=len):
        known = load_recipe(name)
        if same_sizes(sizes, known.model):
            say(f"{weights.where} has the sizes of {name}")
            return known.model_for_clips()
    return sizes


def _write_nemo(job: WriteJob, model: Architecture, folder: Path) -> None:
    assert isinstance(model, ModelConfig)
    with _without_logging():
        # Before the weights: it says whether NeMo is installed.
        with large_imports():
            from cosmos_hpc.worker.training.nemo import write_context

        write_nemo_weights(job, folder / "weights")
        write_context(model, folder / "context")


@contextlib.contextmanager
def _without_logging() -> Iterator[None]:
    """NeMo and its companions have much to say that is not about a conversion."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check_disk(size: int, target: Path, replaced: Path) -> None:
    """Refuse what does not fit, where ``replaced`` is removed before."""
    folder = files.nearest_existing(target.parent)
    free = shutil.disk_usage(folder).free
    for path in (replaced, *replaced.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            free += path.stat().st_blocks * 512
    if free < size:
        raise RequestError(
            f"{target} takes {gigabytes(size)}, and {folder} has {gigabytes(free)} free"
        )


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Refuse a second conversion to the same place."""
    lock = target.with_name(f".{target.name}.lock")
    try:
        with files.lock(lock):
            if not _is_mine(lock):
                check_new(target)
                raise BlockingIOError("another process")
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except BlockingIOError as e:
        raise RequestError(f"{target} is being written by {e}") from None


def _is_mine(lock: Path) -> bool:
    """Whether the lock that this process got is on the file that others see.

    Its last holder may have removed it meanwhile, and somebody else made and locked another.
    """
    try:
        return lock.read_text().startswith(f"process {os.getpid()} on ")
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _removed_after(path: Path) -> Iterator[None]:
    """Without what an earlier attempt left there, and leaving nothing after a failure."""
    _remove(path)
    try:
        yield
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
