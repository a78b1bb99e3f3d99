"""Runs of the tasks with texts and actions, prepared without training."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import Recipe, list_input, load_recipe
from cosmos_hpc.hub.datasets import located
from cosmos_hpc.planning.plans import make_plan
from cosmos_hpc.runs.create import open_run
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import stages_of, task_command, write_specs
from cosmos_hpc.worker.stages.download import download
from cosmos_hpc.worker.stages.finalize import finalize
from cosmos_hpc.worker.stages.preprocess import preprocess


def opened(path: Path, name: str, *overrides: str, shards: int = 2) -> tuple[RunFolder, Recipe]:
    """A run folder with pinned rows."""
    recipe = load_recipe(name, overrides)
    cluster = load_cluster()
    run = RunFolder(path)
    root, rows = list_input(located(recipe))
    open_run(run, recipe, cluster, make_plan(recipe, cluster, len(rows)))
    run.data.pin(root, rows, shards)
    write_specs(run, recipe)
    return run, recipe


def planned(path: Path, name: str, *overrides: str, shards: int = 2) -> tuple[RunFolder, Recipe]:
    """A run folder with pinned rows, a tokenizer, and a text encoder where it needs one."""
    run, recipe = opened(path, name, *overrides, shards=shards)
    download(run, recipe)
    return run, recipe


def prepared(path: Path, name: str, *overrides: str, shards: int = 2) -> RunFolder:
    """A run that is ready for training."""
    run, recipe = planned(path, name, *overrides, shards=shards)
    for shard in range(shards):
        preprocess(run, recipe, shard)
    finalize(run, recipe)
    return run


def samples(run: RunFolder) -> dict[str, bytes]:
    """Content of every file that training reads, by path."""
    return {
        str(p.relative_to(run.tokens.samples)): p.read_bytes()
        for p in run.tokens.samples.rglob("*")
        if p.is_file()
    }


def kill_when(run: RunFolder, recipe: Recipe, reached: Callable[[], bool]) -> bool:
    """Start the worker of shard 0 and kill it at a moment; whether it was still at work then."""
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "preprocess"]
    worker = subprocess.Popen(
        task_command(run, stage), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while worker.poll() is None and not reached():
        time.sleep(0.002)
    alive = worker.poll() is None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    return alive
