"""Finalize on shards of real ids: what is checked, reported and joined, and what training reads."""

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from msgspec.structs import replace

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.data.shards import write_marker
from cosmos_hpc.data.videos import list_video_files
from cosmos_hpc.errors import WorkError
from cosmos_hpc.planning.plans import make_plan
from cosmos_hpc.runs.create import open_run
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import is_done, marker_path, stages_of, task_command, write_specs
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.documents import open_documents
from cosmos_hpc.worker.datasets.samples import Clips
from cosmos_hpc.worker.datasets.shard import write_documents
from cosmos_hpc.worker.stages.download import download
from cosmos_hpc.worker.stages.finalize import finalize
from cosmos_hpc.worker.stages.preprocess import preprocess

#: Of a clip of the recipe below.
IDS = 10
SMALL = ("data.frames=1", "data.height=32", "data.width=80")


def write_shard(run, number, rows):
    """A published shard: rows of videos, with random ids for their clips."""
    folder = run.tokens.shard(number)
    folder.mkdir(parents=True)
    good = [row for row in rows if "error" not in row]
    failed = [row for row in rows if "error" in row]
    clips = sum(row["clips"] for row in good)
    ids = np.random.default_rng(number).integers(0, 64_000, (clips, IDS))
    write_documents(folder / "tokens", ids)
    files.write_jsonl(folder / "clips.jsonl", good)
    files.write_jsonl(folder / "failed.jsonl", failed)
    marker = {
        "shard": number,
        "videos": len(rows),
        "clips": clips,
        "failed": len(failed),
        "padded": sum(bool(row["padded"]) for row in good),
        "ids_per_clip": IDS,
        "sha256": {p.name: files.sha256(p) for p in sorted(folder.iterdir())},
        "seconds": {"decode": 1.0},
    }
    write_marker(folder, marker)
    return ids


def good(index, clips=1, **more):
    row = {"index": index, "video": f"{index}.mp4", "clips": clips, "padded": 0, "seconds": 1.5}
    return {**row, **more}


def bad(index, kind="unreadable"):
    return {"index": index, "video": f"{index}.mp4", "error": kind, "reason": f"{kind} it is"}


#: Two shards of four and three videos, and one in which every video failed.
ROWS = [
    [good(0), bad(1), good(2, padded=3), good(3, clips=2, seconds=[1.0, 2.0])],
    [bad(4), bad(5, "short"), bad(6)],
    [good(7), bad(8), good(9, video="\udcff\n.mp4")],
]


def prepared(path, *overrides, rows=ROWS):
    recipe = load_recipe("ar_tiny", [*SMALL, "data.max_failed_fraction=0.6", *overrides])
    run, cluster = RunFolder(path), load_cluster()
    count = sum(map(len, rows))
    open_run(run, recipe, cluster, make_plan(recipe, cluster, count))
    run.data.pin(str(path), [f"{i}.mp4" for i in range(count)], len(rows))
    bounds = np.cumsum([0, *map(len, rows)]).tolist()
    files.write_json(run.data.shards, {**files.read_json(run.data.shards), "bounds": bounds})
    write_specs(run, recipe)
    ids = [write_shard(run, number, shard) for number, shard in enumerate(rows)]
    return run, recipe, np.concatenate(ids)


def test_the_joined_files_are_those_of_megatrons_own_merge(tmp_path):
    run, recipe, ids = prepared(tmp_path / "run")
    finalize(run, recipe)
    builder = IndexedDatasetBuilder(str(tmp_path / "own.bin"), dtype=np.uint16)
    for number in range(3):
        builder.add_index(str(run.tokens.shard(number) / "tokens"))
    builder.finalize(str(tmp_path / "own.idx"))
    for suffix in ("bin", "idx"):
        own = (tmp_path / f"own.{suffix}").read_bytes()
        assert (run.tokens.path / f"tokens.{suffix}").read_bytes() == own
    dataset = IndexedDataset(str(run.tokens.prefix))
    assert [dataset[i].tolist() for i in range(len(dataset))] == ids.tolist()
    # Megatron's writer may replace what it writes to, devices as well.
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_every_document_is_traced_to_its_video_and_clip(tmp_path):
    run, recipe, _ = prepared(tmp_path / "run")
    finalize(run, recipe)
    found = [
        (row["document"], row["video"], row["clip"], row["seconds"])
        for row in files.read_jsonl(run.tokens.clips)
    ]
    assert found == [
        (0, "0.mp4", 0, 1.5),
        (1, "2.mp4", 0, 1.5),
        (2, "3.mp4", 0, 1.0),
        (3, "3.mp4", 1, 2.0),
        (4, "7.mp4", 0, 1.5),
        (5, "\udcff\n.mp4", 0, 1.5),
    ]
    assert files.read_json(marker_path(run, "finalize")) == {
        "videos": 10,
        "failed": {"unreadable": 4, "short": 1},
        "clips": 6,
        "padded": 1,
        "joined": True,
    }


def test_what_failed_is_reported_by_kind_with_examples(tmp_path, capsys):
    run, recipe, _ = prepared(tmp_path / "run")
    finalize(run, recipe)
    summary = files.read_json(run.tokens.failed_summary)
    assert summary["videos"] == 10
    kinds = summary["failed"]
    assert {kind: entry["count"] for kind, entry in kinds.items()} == {"unreadable": 4, "short": 1}
    shown = [example["video"] for example in kinds["unreadable"]["examples"]]
    assert shown == ["1.mp4", "4.mp4", "6.mp4"]
    assert len(files.read_jsonl(run.tokens.failed)) == 5
    said = capsys.readouterr().out
    assert "failed, unreadable: 4 of 10 videos, of which" in said
    assert "'5.mp4': short it is" in said


def test_unjoined_shards_give_the_same_documents(tmp_path):
    run, recipe, ids = prepared(tmp_path / "run", "data.join=false")
    finalize(run, recipe)
    assert not run.tokens.prefix.with_suffix(".bin").exists()
    table = run.tokens.clips.read_bytes()
    documents = open_documents(str(run.tokens.prefix))
    assert len(documents) == 6
    assert [documents[i].tolist() for i in range(6)] == ids.tolist()
    assert documents[0].dtype == np.uint16
    with pytest.raises(IndexError):
        documents[6]
    left = Clips(str(run.tokens.prefix), [5, 0, 3], 9, IDS, seed=4)
    samples = [sample["tokens"].tolist() for sample in (left[i] for i in range(9))]

    # Joining them later changes nothing but where the ids are read from.
    wanted = load_recipe("ar_tiny", SMALL)
    assert is_done(run, recipe, "finalize", 0)
    assert not is_done(run, wanted, "finalize", 0)
    finalize(run, replace(wanted, data=replace(recipe.data, join=True)))
    assert is_done(run, wanted, "finalize", 0)
    assert run.tokens.clips.read_bytes() == table
    joined = Clips(str(run.tokens.prefix), [5, 0, 3], 9, IDS, seed=4)
    assert [sample["tokens"].tolist() for sample in (joined[i] for i in range(9))] == samples


def test_unjoined_shards_are_checked_all_the_same(tmp_path):
    run, recipe, _ = prepared(tmp_path / "run", "data.join=false")
    flip(run.tokens.shard(2) / "tokens.bin", 17)
    with pytest.raises(WorkError, match="00002/tokens.bin is not what its shard's marker says"):
        finalize(run, recipe)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx", "clips.jsonl", "failed.jsonl"])
def test_damage_of_any_file_is_found_and_named(tmp_path, name):
    run, recipe, _ = prepared(tmp_path / "run")
    path = run.tokens.shard(0) / name
    whole = path.read_bytes()
    says = rf"00000/{name} is not what its shard's marker says; delete .*/00000 and submit"
    for damage in ("flip", "cut", "gone", "empty", "longer"):
        if damage == "gone":
            path.unlink()
        else:
            changed = {"cut": whole[:-1], "empty": b"", "longer": whole + b"\n", "flip": whole}
            path.write_bytes(changed[damage])
        if damage == "flip":
            flip(path, len(whole) // 2)
        with pytest.raises(WorkError, match=says):
            finalize(run, recipe)
        assert not marker_path(run, "finalize").exists()
        path.write_bytes(whole)
    finalize(run, recipe)


def test_several_bad_shards_are_counted(tmp_path):
    run, recipe, _ = prepared(tmp_path / "run")
    (run.tokens.shard(0) / "done.json").write_text("{")
    flip(run.tokens.shard(1) / "failed.jsonl", 3)
    (run.tokens.shard(2) / "done.json").unlink()
    says = r"00000/done.json is damaged, .* \(and 2 more shards are damaged or missing\)"
    with pytest.raises(WorkError, match=says):
        finalize(run, recipe)


@pytest.mark.parametrize("change", [{"shard": 2}, {"videos": 5}, {"ids_per_clip": 20}])
def test_a_shard_of_another_run_is_refused(tmp_path, change):
    run, recipe, _ = prepared(tmp_path / "run")
    marker = files.read_json(marker_path(run, "preprocess", 0))
    del marker["digest"]
    write_marker(run.tokens.shard(0), {**marker, **change})
    with pytest.raises(WorkError, match="00000 is not of this run: .*; delete it and submit again"):
        finalize(run, recipe)


def test_counts_that_do_not_fit_the_files_are_refused(tmp_path):
    run, recipe, _ = prepared(tmp_path / "run")
    marker = files.read_json(marker_path(run, "preprocess", 0))
    del marker["digest"]
    for change in ({"clips": 9}, {"failed": 0}):
        write_marker(run.tokens.shard(0), {**marker, **change})
        with pytest.raises(WorkError, match="00000/done.json counts other clips or videos than"):
            finalize(run, recipe)


def test_killed_at_any_moment_it_can_be_repeated(tmp_path):
    rows = [[good(1000 * shard + i) for i in range(1000)] for shard in range(6)]
    run, recipe, ids = prepared(tmp_path / "run", rows=rows)
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "finalize"]
    names = ("tokens.bin", "tokens.idx", "clips.jsonl")
    for delay in (0.0, 0.02, 0.05, 0.1):
        worker = subprocess.Popen(task_command(run, stage), stdout=subprocess.DEVNULL)
        while worker.poll() is None and not (run.tokens.path / ".joined.tmp").exists():
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        marker_path(run, "finalize").unlink(missing_ok=True)
    finalize(run, recipe)
    assert (run.tokens.path / "tokens.bin").read_bytes() == ids.astype(np.uint16).tobytes()
    assert len(IndexedDataset(str(run.tokens.prefix))) == 6000
    first = [hashlib.sha256((run.tokens.path / name).read_bytes()).hexdigest() for name in names]
    marker_path(run, "finalize").unlink()
    finalize(run, recipe)
    again = [hashlib.sha256((run.tokens.path / name).read_bytes()).hexdigest() for name in names]
    assert again == first
    assert not (run.tokens.path / ".joined.tmp").exists()


def test_an_empty_shard_is_no_obstacle(tmp_path):
    run, recipe, _ = prepared(tmp_path / "run", "data.join=false")
    assert files.read_jsonl(run.tokens.shard(1) / "clips.jsonl") == []
    finalize(run, recipe)
    assert len(open_documents(str(run.tokens.prefix))) == 6


def test_nothing_at_all(tmp_path):
    run, recipe, _ = prepared(tmp_path / "run", rows=[[bad(0)], [bad(1)]])
    with pytest.raises(WorkError, match="no video could be prepared: 2 of 2 videos failed"):
        finalize(run, recipe)
    assert files.read_json(run.tokens.failed_summary)["failed"]["unreadable"]["count"] == 2


def test_videos_of_a_list_keep_their_identity(tmp_path, scenes):
    """Two files of one name, and one file with two prompts, stay apart from list to document."""
    names = sorted(p.name for p in scenes.glob("*.mp4"))[:2]
    for folder, name in zip(("one", "two"), names, strict=True):
        (tmp_path / folder).mkdir()
        shutil.copy(scenes / name, tmp_path / folder / "same.mp4")
    entries = [
        {"visual_input": "two/same.mp4", "prompt": "a"},
        {"visual_input": str(tmp_path / "one" / "same.mp4")},
        {"visual_input": "two/same.mp4", "prompt": "b"},
        {"visual_input": "one/gone.mp4"},
    ]
    files.write_jsonl(tmp_path / "list.jsonl", entries)
    recipe = load_recipe("ar_tiny", ["data.frames=9", "data.height=48", "data.width=80"])
    root, rows = list_video_files(str(tmp_path / "list.jsonl"))
    tables = []
    for shards in (1, 3):
        run, cluster = RunFolder(tmp_path / f"run{shards}"), load_cluster()
        open_run(run, recipe, cluster, make_plan(recipe, cluster, len(rows)))
        run.data.pin(root, rows, shards)
        write_specs(run, recipe)
        download(run, recipe)
        for shard in range(shards):
            preprocess(run, recipe, shard)
        finalize(run, recipe)
        tables.append(run.tokens.clips.read_bytes() + (run.tokens.path / "tokens.bin").read_bytes())
    assert tables[0] == tables[1]
    found = files.read_jsonl(run.tokens.clips)
    assert [(row["document"], row["index"], row["video"]) for row in found] == [
        (0, 0, "two/same.mp4"),
        (1, 1, str(tmp_path / "one" / "same.mp4")),
        (2, 2, "two/same.mp4"),
    ]
    assert [(row["index"], row["kind"]) for row in files.read_jsonl(run.tokens.failed)] == [
        (3, "missing")
    ]
    documents = open_documents(str(run.tokens.prefix))
    assert documents[0].tolist() == documents[2].tolist() != documents[1].tolist()
    assert pinned_prompts(run) == ["a", None, "b", None]


def pinned_prompts(run):
    return [
        row.get("prompt") for n in range(run.data.num_shards()) for row in run.data.of_shard(n).rows
    ]
