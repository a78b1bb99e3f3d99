"""A stage that a developer adds: a row of the table and a file, in a copy of the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import REPOSITORY

_ROW = """
STAGES["count"] = Stage(
    "count",
    work="cosmos_hpc.worker.stages.count:count",
    marker="counts/{marker}.json",
    libraries={{}},
    after=("preprocess",),
    array={array},
    time="00:20:00",
    optional={optional},
    progress=lambda run, markers: HowFar(f"{{sum(path.exists() for path in markers)}} counted"),
)
"""
_WORK = '''
"""Counts the clips of a shard, or of all of them."""

from cosmos_hpc.runs.stages import STAGES, marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import say


def count(run, recipe, task):
    shards = [task] if STAGES["count"].array else range(run.data.num_shards())
    found = [files.read_jsonl(run.tokens.shard(shard) / "clips.jsonl") for shard in shards]
    clips = sum(row["clips"] for rows in found for row in rows)
    say(f"{clips} clips")
    files.write_json(marker_path(run, "count", task), {"clips": clips})
'''


def package_with_a_stage(folder: Path, array: bool) -> str:
    """Copy the package to a folder and add a stage ``count``; returns what PYTHONPATH has to be.

    An array, or an optional stage of one task.
    """
    for name in ("cosmos_hpc", "recipes"):
        shutil.copytree(REPOSITORY / name, folder / name)
    table = folder / "cosmos_hpc" / "runs" / "stages.py"
    row = _ROW.format(marker="%05d" if array else "all", array=array, optional=not array)
    table.write_text(table.read_text().replace("\n\ndef stage_named", f"{row}\n\ndef stage_named"))
    (folder / "cosmos_hpc" / "worker" / "stages" / "count.py").write_text(_WORK)
    return str(folder)
