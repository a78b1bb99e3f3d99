"""Run folders as trainings leave them, written by hand: no training is needed to look at them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.data.shards import CONTENT, write_marker
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import dump_yaml


def write_run(
    path: Path,
    *overrides: str,
    steps: int = 0,
    saved: Sequence[int] = (),
    done: bool = False,
    cluster: str = "kind: local\nname: local\nruns: runs\nparallel: 2\ngpus: 0\ngpu: 80GB\n",
) -> RunFolder:
    """A run that has trained so many steps.

    Args:
        path: of its folder.
        overrides: of its recipe, which is ar_tiny.
        steps: with a loss of ``5 - step / 10`` each; the last one is validated as well.
        saved: steps whose checkpoints are there.
        done: whether the marker of the training is there, as of so many steps.
        cluster: its resolved profile.
    """
    run = RunFolder(path)
    recipe = load_recipe("ar_tiny", [f"train.max_steps={max(steps, 1)}", *overrides])
    files.write_json(
        run.info, {"id": f"id-{path.name}", "name": path.name, "created": "2026-01-02"}
    )
    files.write_atomic(run.recipe_file, dump_yaml(recipe))
    files.write_atomic(run.cluster_file, cluster)
    files.write_json(run.asked, {"stages": ["train"]})
    files.write_json(run.spec("train"), {"recipe": recipe.as_dict()})
    rows = [
        {"step": step, "loss": 5 - step / 10, "seconds": 1.0, "time": 1.7e9 + step}
        for step in range(1, steps + 1)
    ]
    if rows:
        _prepared(run)
        validation = {"step": steps, "validation_loss": 4.5, "time": 1.7e9 + steps}
        files.write_jsonl(run.train.metrics, [*rows, validation])
    for step in saved:
        weights = checkpoint(run, step) / "weights"
        files.write_json(weights / "metadata.json", {})
        files.write_atomic(weights / "shard.distcp", b"x" * 100_000)
    if done:
        last = checkpoint(run, steps)
        last.with_name(f"{last.name}-last").symlink_to(last.name)
        where = last.with_name(f"{last.name}-last").relative_to(run.path)
        files.write_json(run.train.done, {"steps": steps, "checkpoint": str(where)})
    return run


def _prepared(run: RunFolder) -> None:
    """The markers of the stages before the training: one shard of one video."""
    run.data.pin("", ["scene.mp4"], 1)
    none = dict.fromkeys(CONTENT, "0" * 64)
    counts = {"shard": 0, "videos": 1, "clips": 1, "failed": 0, "padded": 0, "ids_per_clip": 1}
    run.tokens.shard(0).mkdir(parents=True)
    write_marker(run.tokens.shard(0), {**counts, "sha256": none, "seconds": {}})
    files.write_json(run.tokenizer / "done.json", {})
    files.write_json(run.tokens.path / "done.json", {"clips": 1, "videos": 1})


def checkpoint(run: RunFolder, step: int) -> Path:
    """Where a checkpoint lies; NeMo counts from 0."""
    return run.train.checkpoints / f"step={step - 1}-reduced_train_loss=1.0000"


@contextlib.contextmanager
def worked_on(run: RunFolder) -> Iterator[None]:
    """As if a submit carried the run out in this block."""
    with files.lock(run.lock):
        yield
