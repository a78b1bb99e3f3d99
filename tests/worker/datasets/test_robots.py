"""Robot clips become the guide's files, pairs never cross clips, and what is wrong is listed."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

from cosmos_hpc.errors import Stopped, WorkError
from cosmos_hpc.runs.stages import marker_path, stages_of, task_command
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.conditioned import FramePairs
from cosmos_hpc.worker.datasets.robots import FILES
from cosmos_hpc.worker.stages.finalize import finalize
from cosmos_hpc.worker.stages.preprocess import preprocess
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.clips import read_clip
from tests.conftest import real_data
from tests.worker.preparing import kill_when, planned, prepared, samples
from tests.worker.robots import remove_video, write_bridge, write_clip


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    """Real robot clips where there are any, and else generated ones."""
    return real_data("bridge") or write_bridge(
        tmp_path_factory.mktemp("robots") / "bridge", {"train": 6, "val": 3}
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, bridge):
    """Prepared in one shard."""
    path = tmp_path_factory.mktemp("runs") / "reference"
    return prepared(path, "ar_tiny_action", f"data.input={bridge}", shards=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A generated folder, for what is done many times."""
    return write_bridge(tmp_path_factory.mktemp("robots") / "small", {"train": 6, "val": 2})


def load(run, part):
    folder = run.tokens.samples / part
    return {name: torch.load(folder / name, weights_only=True) for name in FILES}


def test_the_files_are_those_of_the_guide(reference, bridge):
    tokenizer = VideoTokenizer(reference.tokenizer, (1, 6, 8))
    table = files.read_jsonl(reference.tokens.samples / "clips.jsonl")
    assert {row["part"] for row in table} == {"train", "validation"}
    for part, name in (("train", "train"), ("validation", "val")):
        found = load(reference, name)
        ids, actions, state, gripper = found.values()
        clips = [row for row in table if row["part"] == part]
        total = sum(row["frames"] for row in clips)
        assert (ids.shape, ids.dtype) == ((total, 1, 6, 8), torch.int32)
        assert (actions.shape, state.shape) == ((total, 7), (total, 7))
        assert gripper.shape == (total,)
        ends = [row["first"] + row["frames"] - 1 for row in clips]
        assert actions.isnan().all(1).nonzero()[:, 0].tolist() == ends
        assert actions.isnan().any(1).sum() == len(clips)
        for row in clips:
            clip = row["video"].split("/")[2]
            assert row["video"] == f"videos/{name}/{clip}/rgb.mp4"
            text = json.loads((bridge / "annotation" / name / f"{clip}.json").read_text())
            rows = slice(row["first"], row["first"] + row["frames"])
            assert torch.equal(actions[rows][:-1], torch.tensor(text["action"]))
            assert torch.equal(state[rows], torch.tensor(text["state"]))
            assert torch.equal(gripper[rows], torch.tensor(text["continuous_gripper_state"]))
        # Every frame by itself, as if there were no other.
        row = clips[-1]
        pixels = read_clip(bridge / row["video"], row["frames"], 96, 128).pixels
        for frame in range(row["frames"]):
            alone = tokenizer.encode(pixels[None, :, frame : frame + 1])[0]
            assert torch.equal(ids[row["first"] + frame], alone)


def test_pairs_are_all_there_are_and_never_cross_clips(reference):
    for part, name in (("train", "train"), ("validation", "val")):
        clips = files.read_jsonl(reference.tokens.samples / "clips.jsonl")
        clips = [row for row in clips if row["part"] == part]
        ids, actions, *_ = load(reference, name).values()
        count = sum(row["frames"] - 1 for row in clips)
        pairs = FramePairs(reference.tokens.samples / name, 128, count, once=True)
        assert pairs.count == count
        marker = files.read_json(marker_path(reference, "finalize"))
        assert marker["samples"]["pairs"][name] == count
        number = 0
        for row in clips:
            for start in range(row["first"], row["first"] + row["frames"] - 1):
                sample = pairs[number]
                expected = torch.cat([ids[start].flatten(), ids[start + 1].flatten()])
                assert sample["tokens"][:97].tolist() == [64000, *expected.tolist()]
                assert torch.equal(sample["action"], actions[start])
                number += 1


@pytest.mark.parametrize(("shards", "batch"), [(2, 1), (3, 7)])
def test_files_do_not_depend_on_shards_or_batches(tmp_path, reference, bridge, shards, batch):
    how = (f"data.input={bridge}", f"data.batch_size={batch}")
    run = prepared(tmp_path / "run", "ar_tiny_action", *how, shards=shards)
    assert samples(run) == samples(reference)


@pytest.mark.slow
def test_a_killed_worker_goes_on_and_changes_nothing(tmp_path, small):
    settings = ("ar_tiny_action", f"data.input={small}")
    whole = prepared(tmp_path / "whole", *settings, shards=1)
    run, recipe = planned(tmp_path / "run", *settings, "data.batch_size=1", shards=1)
    moments = [
        kill_when(run, recipe, lambda n=n: len(files.read_jsonl(run.tokens.journal(0))) >= n)
        for n in (1, 4)
    ]
    assert any(moments)
    preprocess(run, recipe, 0)
    finalize(run, recipe)
    assert samples(run) == samples(whole)


def test_stopped_on_request_between_clips(tmp_path, small, monkeypatch):
    # Only when clips are written, not while the first one is waited for.
    monkeypatch.setattr("cosmos_hpc.worker.datasets.shard._LOOK_EVERY", 60)
    how = (f"data.input={small}", "data.batch_size=1")
    run, recipe = planned(tmp_path / "run", "ar_tiny_action", *how, shards=1)
    files.write_atomic(run.stop_request, "")
    with pytest.raises(Stopped, match="stopped after 1 of 8 videos"):
        preprocess(run, recipe, 0)
    assert len(files.read_jsonl(run.tokens.journal(0))) == 1


def test_clips_that_cannot_be_used_are_listed_and_do_not_stop_the_rest(tmp_path):
    folder = write_bridge(tmp_path / "bridge", {"train": 4, "val": 3})
    actions = [[0.5] * 7] * 3
    write_clip(folder, "train", "101", 5, action=actions)
    write_clip(folder, "train", "102", 5, action=actions, state=[[0.0] * 7] * 4)
    write_clip(folder, "train", "103", 4, action=[[math.nan] * 7] * 3)
    write_clip(folder, "train", "104", 4)
    (folder / "annotation" / "train" / "104.json").unlink()
    write_clip(folder, "train", "105", 4)
    (folder / "annotation" / "train" / "105.json").write_text('{"action": [[')
    write_clip(folder, "train", "106", 4)
    remove_video(folder, "train", "106")
    write_clip(folder, "train", "107", 4)
    video = folder / "videos" / "train" / "107" / "rgb.mp4"
    video.write_bytes(b"x" * 1000)
    good = [[[0.0] * 7] * 4, [1.0] * 5]
    write_clip(folder, "train", "108", 4, action=good[0], state=[[0.0] * 7] * 5)
    write_clip(
        folder,
        "val",
        "109",
        4,
        action=good[0],
        state=[[0.0] * 7] * 5,
        continuous_gripper_state=good[1],
    )
    write_clip(
        folder,
        "val",
        "110",
        6,
        action=good[0],
        state=[[0.0] * 7] * 5,
        continuous_gripper_state=good[1],
    )
    settings = ("ar_tiny_action", f"data.input={folder}")
    run = prepared(tmp_path / "run", *settings, "data.max_failed_fraction=0.6")
    failed = {row["video"].split("/")[2]: row for row in files.read_jsonl(run.tokens.failed)}
    assert {clip: row["kind"] for clip, row in failed.items()} == {
        "101": "actions",
        "102": "actions",
        "103": "actions",
        "104": "annotation",
        "105": "annotation",
        "106": "missing",
        "107": "unreadable",
        "108": "actions",
        "109": "actions",
        "110": "actions",
    }
    reasons = {clip: row["reason"] for clip, row in failed.items()}
    assert reasons["101"] == "3 actions go with 4 of state, not 5"
    assert reasons["103"] == "action 0 holds NaN or infinity"
    assert reasons["104"] == "it has no annotation 104.json"
    assert reasons["105"].startswith("105.json is not JSON: ")
    assert reasons["109"] == "4 actions go with 5 frames, and the video has 4"
    assert reasons["110"] == "4 actions go with 5 frames, and the video has more than 5"
    assert len(files.read_jsonl(run.tokens.samples / "clips.jsonl")) == 7
    with pytest.raises(WorkError, match=r"10 of 17 .*6? ?actions.*does not allow"):
        prepared(tmp_path / "strict", *settings)


def test_a_clip_that_kills_its_decoder_is_listed_and_the_rest_goes_on(tmp_path):
    folder = write_bridge(tmp_path / "bridge", {"train": 3})
    video = folder / "videos" / "train" / "14" / "rgb.mp4"
    video.rename(video.with_name("kills.mp4"))
    video.symlink_to("kills.mp4")
    run, recipe = planned(tmp_path / "run", "ar_tiny_action", f"data.input={folder}", shards=1)
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "preprocess"]
    # run_task.py comes first on the path, so that what it finds there is the run's snapshot.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "hostile_site")}
    assert subprocess.run(task_command(run, stage), env=environment, check=False).returncode == 0
    finalize(run, recipe)
    (failed,) = files.read_jsonl(run.tokens.failed)
    assert (failed["video"], failed["kind"]) == ("videos/train/14/rgb.mp4", "killed_worker")
    assert len(files.read_jsonl(run.tokens.samples / "clips.jsonl")) == 2


def test_a_folder_that_is_not_divided_is_split_by_weight(tmp_path):
    folder = write_bridge(tmp_path / "bridge", {"train": 8})
    run = prepared(tmp_path / "run", "ar_tiny_action", f"data.input={folder}")
    parts = [row["part"] for row in files.read_jsonl(run.tokens.samples / "clips.jsonl")]
    assert {part: parts.count(part) for part in set(parts)} == {
        "train": 6,
        "validation": 1,
        "test": 1,
    }
    assert sorted(os.listdir(run.tokens.samples)) == ["clips.jsonl", "test", "train", "val"]


def test_an_input_that_is_gone_is_no_fault_of_the_clips(tmp_path, small):
    run, recipe = planned(tmp_path / "run", "ar_tiny_action", f"data.input={small}")
    pinned = files.read_json(run.data.shards)
    files.write_json(run.data.shards, {**pinned, "root": str(tmp_path / "unmounted")})
    with pytest.raises(WorkError, match="unmounted is not there; is its file system mounted"):
        preprocess(run, recipe, 0)
