"""The report stage: one page that tells and shows what a run has done."""

from __future__ import annotations

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.runs.completion import report_inputs
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.report import gather
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import say
from cosmos_hpc.worker.report.page import render


def report(run: RunFolder, recipe: Recipe, task: int = 0) -> None:
    """Write ``report/report.html``, of whatever there is of the run, and then the marker.

    Raises:
        WorkError: the page would be too large.
    """
    # Before they are read: what changes meanwhile asks for another page.
    inputs = report_inputs(run)
    facts = gather(run, recipe)
    for problem in facts.problems:
        say(problem)
    text = render(facts)
    marker = marker_path(run, "report")
    page = marker.with_name("report.html")
    files.write_atomic(page, text)
    files.write_json(marker, {"page": str(page.relative_to(run.path)), "inputs": inputs})
    say(f"wrote {page}, {page.stat().st_size / 1e6:.1f} MB")
