"""The page of a sweep: its runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cosmos_hpc.config.overrides import written
from cosmos_hpc.runs.comparison import Comparison
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.listing import ListedRun, short_name
from cosmos_hpc.utils import files
from cosmos_hpc.worker.report import figures
from cosmos_hpc.worker.report.templates import fill


def render(name: str, runs: Sequence[ListedRun], comparison: Comparison) -> str:
    """The page as one file of HTML, which links to the reports of the runs.

    Args:
        name: of the sweep.
        runs: how far each is, with its swept values.
        comparison: of the same runs, in the same order.
    """
    labels = [label(run.swept) for run in runs]
    rows = {
        one: files.read_jsonl(RunFolder(run.path).train.metrics)
        for one, run in zip(labels, runs, strict=True)
    }
    drawn = [
        figures.compared_losses(rows, "loss", "training"),
        figures.compared_losses(rows, "validation_loss", "validation"),
    ]
    heads, *scores = comparison.score_rows()
    return fill(
        "sweep.html.j2",
        name=name,
        runs=runs,
        keys=list(dict.fromkeys(key for run in runs for key in run.swept)),
        short_name=short_name,
        written=written,
        heads=heads[1:],
        scores=[row[1:] for row in scores],
        differ=comparison.settings,
        reports=[
            f"{run.name}/report/report.html" if RunFolder(run.path).report.exists() else ""
            for run in runs
        ],
        figures=[figure for figure in drawn if figure],
    )


def label(swept: Mapping[str, Any]) -> str:
    """A run's swept values, as a legend says them: ``learning_rate=0.0001``."""
    return ", ".join(f"{short_name(key)}={written(swept[key])}" for key in swept)
