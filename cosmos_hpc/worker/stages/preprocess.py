"""The preprocess stage: one shard of videos becomes tokens in Megatron's indexed format."""

from __future__ import annotations

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils.imports import large_imports, load
from cosmos_hpc.worker.datasets.journal import Journal


def preprocess(run: RunFolder, recipe: Recipe, shard: int) -> None:
    """Prepare a shard and publish it complete; finished clips of an earlier attempt are kept.

    Raises:
        WorkError: the input is gone, or the tokenizer is or does not fit the recipe.
        Stopped: on request, after what is finished has been written.
    """
    task = recipe.kind
    if task.before_shard:
        # First: what it loads is freed before the tokenizer is loaded.
        load(task.before_shard)(run, recipe, shard)
    with large_imports(freeze=True):
        kind = load(task.shard)
    with Journal(run.tokens.journal(shard), recipe.data.ids_per_clip) as journal:
        work = kind(run, recipe, shard, journal)
        work.fill()
        work.publish()
    journal.remove()
    work.in_flight.remove()
