"""Writes the examples beside this file for the example cluster: ``python sbatch/render.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.backends.slurm.jobs import jobs_of
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.backends.slurm.script import render
from cosmos_hpc.backends.slurm.submit import script_path
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.planning.plans import make_plan, resolved
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import list_stages

HERE = Path(__file__).resolve().parent
#: One that continues videos, and one that does so from texts.
EXAMPLES = ("ar4b", "ar13b_v2w")
#: What a submit would find out: how many videos there are, and who the run is.
VIDEOS, DATA, RUN_ID = 200_000, "/shared/data", "0123456789ab"


def scripts(recipes: Iterable[str] = EXAMPLES) -> Iterator[tuple[Path, str]]:
    """Path below this folder, and text, of every script of some recipes."""
    cluster = load_cluster(str(HERE / "cluster.yaml"))
    assert isinstance(cluster, SlurmCluster)
    for name in recipes:
        recipe = load_recipe(name)
        plan = make_plan(recipe, cluster, VIDEOS)
        run = RunFolder(Path(cluster.runs) / name)
        for stage in list_stages(plan.shards or 0, resolved(recipe, plan)):
            for job in jobs_of(stage, range(stage.tasks), cluster):
                code = run.path / "code" / RUN_ID
                text = render(job, run, cluster, RUN_ID, code, [DATA, "/shared/hf"])
                yield script_path(Path(name), job), text


if __name__ == "__main__":
    for path, text in scripts():
        (HERE / path).parent.mkdir(exist_ok=True)
        (HERE / path).write_text(text)
