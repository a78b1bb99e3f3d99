"""The ids of a run are the same whatever the number of shards, workers and interruptions."""

import tarfile

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from cosmos_hpc.utils import files
from cosmos_hpc.worker.stages.finalize import finalize
from cosmos_hpc.worker.stages.preprocess import preprocess
from tests.worker.lerobot import Robot
from tests.worker.preparing import kill_when, planned, prepared

SMALL = ("data.frames=1", "data.clips=all", "data.height=48", "data.width=64")


def write_source(kind, folder):
    """Four videos as a source of a kind, several of them in one file."""
    robot = Robot((60, 40, 70, 30), version="v3.0" if kind == "lerobot" else "v2.1", keys=250)
    robot.write(folder)
    if kind == "lerobot":
        return folder
    videos = sorted(folder.rglob("*.mp4"))
    if kind == "tar":
        with tarfile.open(folder / "0.tar", "w") as tar:
            for video in videos:
                tar.add(video, video.name)
        return folder / "0.tar"
    # Two halves of the first, and the others.
    halves = {"start": [0.0, 3.0, None, None], "end": [3.0, 6.0, None, None]}
    table = pa.table({"path": list(map(str, [videos[0], *videos[:3]])), **halves})
    write = pyarrow.csv.write_csv if kind == "csv" else pq.write_table
    write(table, folder / f"list.{kind}")
    return folder / f"list.{kind}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lerobot", "tar", "parquet", "csv"])
def test_ids_depend_on_no_shards_workers_or_interruptions(tmp_path, kind):
    how = ("ar_tiny", f"data.input={write_source(kind, tmp_path / 'source')}", *SMALL)
    whole = prepared(tmp_path / "whole", *how, "data.decoders=0", shards=1)
    other = ("data.decoders=2", "data.batch_size=1")
    run, recipe = planned(tmp_path / "run", *how, *other, shards=2)
    journal = run.tokens.journal(0)
    assert kill_when(run, recipe, lambda: len(files.read_jsonl(journal)) >= 5)
    for shard in (1, 0):
        preprocess(run, recipe, shard)
    finalize(run, recipe)
    for name in ("tokens.bin", "clips.jsonl"):
        assert (run.tokens.path / name).read_bytes() == (whole.tokens.path / name).read_bytes()
    frames = 200 if kind in ("lerobot", "tar") else 170
    assert len(files.read_jsonl(run.tokens.clips)) == frames
