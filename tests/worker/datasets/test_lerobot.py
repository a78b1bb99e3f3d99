"""Episodes of LeRobot data sets become samples of each task, exact to the frame."""

import math
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from cosmos_hpc.data.parts import FOLDERS
from cosmos_hpc.data.sources import list_source, source_of
from cosmos_hpc.data.wanted import Wanted
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.conditioned import FramePairs
from cosmos_hpc.worker.datasets.samples import split_documents
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.clips import Cut, fit, read_clips
from cosmos_hpc.worker.video.spans import Span
from tests.conftest import cosmos_hpc
from tests.worker.lerobot import FRONT, TASKS, WRIST, Robot, action, picture, read, state
from tests.worker.preparing import prepared, samples

ACTIONS = "ar_tiny_action"
FIXTURES = Path(__file__).parents[2] / "fixtures"
#: Of every kind that LeRobot writes, with key frames far apart and frames that are reordered.
KINDS = [
    ("v2.1", "libx264", 250),
    ("v3.0", "libx264", 250),
    ("v3.0", "libx264", 2),
    ("v2.1", "libsvtav1", 2),
    ("v3.0", "libsvtav1", 2),
    ("v3.0", "libsvtav1", 30),
    ("v2.1", "image", 1),
    ("v3.0", "image", 1),
]


def decoded_one_by_one(robot, folder):
    """Pixels of every frame of each episode, from files that are read from beginning to end."""
    if robot.codec == "image":
        return [
            [picture(e, f).transpose(2, 0, 1) for f in range(length)]
            for e, length in enumerate(robot.lengths)
        ]
    pictures = []
    for path in sorted(folder.rglob("*.mp4")):
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                pictures.append(np.empty((3, 96, 128), np.uint8))
                fit(VideoReformatter(), frame, pictures[-1])
    ends = np.cumsum(robot.lengths)
    assert len(pictures) == ends[-1]
    return [pictures[end - length : end] for end, length in zip(ends, robot.lengths, strict=True)]


def pixels_of(root, row, **how):
    """Pixels of each picture that is read of a row."""
    clips = read_clips(root / row["path"], Cut(1, 96, 128, every=True, **how), span=Span.of(row))
    return [clip.pixels[:, 0] for clip in clips]


def frames_of(root, row, **how):
    """Episode and frame of each picture that is read of a row."""
    return [read(pixels) for pixels in pixels_of(root, row, **how)]


@pytest.mark.parametrize(("version", "codec", "keys"), KINDS)
def test_an_episode_shows_its_frames_and_no_other(tmp_path, version, codec, keys):
    # Long enough that episodes are sought and not decoded up to from the beginning.
    lengths = (23, 31, 1, 40, 17)
    robot = Robot(lengths, version=version, codec=codec, keys=keys, files=4)
    folder = robot.write(tmp_path / "robot")
    _, rows = list_source(Wanted(str(folder), action="action"), print)
    assert [row["frames"] for row in rows] == list(lengths)
    for row, whole in zip(rows, decoded_one_by_one(robot, folder), strict=True):
        assert np.array_equal(pixels_of(folder, row), whole)
        # Resampled, also to what does not divide it, and from a moment on.
        assert np.array_equal(pixels_of(folder, row, frame_rate=5), whole[::2])
        at_four = [whole[int(i * 2.5)] for i in range(math.ceil(row["frames"] / 2.5))]
        assert np.array_equal(pixels_of(folder, row, frame_rate=4), at_four)
        assert len(whole) <= 5 or np.array_equal(pixels_of(folder, row, start=0.5), whole[5:])


def test_a_data_set_that_lerobot_itself_has_written(tmp_path):
    """By version 0.4.4: three episodes of two cameras, AV1, put together by its own code."""
    with tarfile.open(FIXTURES / "lerobot_0_4.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "lerobot"
    wanted = Wanted(str(folder), "front", action="action", normalize_action="mean_std")
    _, rows = list_source(wanted, print)
    assert [(row["frames"], row["prompt"]) for row in rows] == [
        (12, "task 0"),
        (25, "task 1"),
        (7, "task 2"),
    ]
    source = source_of(str(folder))
    for row in rows:
        episode, frames = row["episode"], range(row["frames"])
        assert frames_of(folder, row) == [(episode, frame) for frame in frames]
        found = source.movements(folder, row, "action", 7)
        assert found["action"] == [action(episode, frame) for frame in frames]
        assert found["state"] == [state(episode, frame) for frame in frames]
        assert found["gripper"] == [episode / 4] * len(frames)
    every = np.array([action(row["episode"], f) for row in rows for f in range(row["frames"])])
    scale = source.action_scale(folder, "action", "mean_std")
    assert scale["shift"] == pytest.approx(every.mean(0), rel=1e-4)
    assert scale["scale"] == pytest.approx(every.std(0), rel=1e-4)


def test_times_of_shared_files_that_were_rounded(tmp_path):
    """Times as sums of rounded durations, off by less than half a frame."""
    folder = Robot((20, 30, 20), files=3, rate=30, keys=250).write(tmp_path / "robot")
    _, rows = list_source(Wanted(str(folder)), print)
    for off in (-0.012, -0.001, 0.0, 0.001, 0.012):
        for row in rows:
            moved = {**row, "start": max(0, row["start"] + off), "end": row["end"] + off}
            whole = [(row["episode"], frame) for frame in range(row["frames"])]
            assert frames_of(folder, moved) == whole
            assert frames_of(folder, moved, frame_rate=15) == whole[::2]


@pytest.fixture(scope="module")
def robots(tmp_path_factory):
    """The same data set in both versions."""
    place = tmp_path_factory.mktemp("lerobot")
    lengths = (5, 8, 3, 6, 4, 7, 5, 3, 4)
    return {v: Robot(lengths, version=v, files=4).write(place / v) for v in ("v2.1", "v3.0")}


def load(run, part, name):
    return torch.load(run.tokens.samples / part / name, weights_only=True)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_actions_go_with_the_frames_that_they_follow(tmp_path, robots, version):
    """To pairs, and once from the command line: a sample holds what the data set says of it."""
    folder = robots[version]
    if version == "v2.1":
        run = prepared(tmp_path / "run", ACTIONS, f"data.input={folder}", shards=3)
    else:
        done = cosmos_hpc(
            "submit", f"recipe={ACTIONS}", f"data.input={folder}", "data.videos_per_shard=4",
            "--stages", "download,preprocess,finalize", "--name", "x", cwd=tmp_path,
        )  # fmt: skip
        assert done.code == 0, done.err
        run = RunFolder(tmp_path / "runs" / "x")
    assert run.data.num_shards() == 3
    pinned = files.read_jsonl(run.data.videos)
    assert all("action" not in row and row["data"].endswith(".parquet") for row in pinned)
    tokenizer = VideoTokenizer(run.tokenizer, (1, 6, 8))
    table = files.read_jsonl(run.tokens.samples / "clips.jsonl")
    assert [row["part"] for row in table].count("train") == 7
    lengths = {row["video"]: row["frames"] for row in table}
    assert sum(lengths.values()) == 45 and len(lengths) == 9
    for part, name in FOLDERS.items():
        clips = [row for row in table if row["part"] == part]
        pairs = FramePairs(run.tokens.samples / name, 128, 1000, once=True)
        assert pairs.count == sum(row["frames"] - 1 for row in clips)
        number = 0
        for row in clips:
            episode = int(row["video"].removeprefix("episode_"))
            rows = slice(row["first"], row["first"] + row["frames"])
            states = [state(episode, frame) for frame in range(row["frames"])]
            assert torch.equal(load(run, name, "state.pt")[rows], torch.tensor(states))
            assert load(run, name, "gripper.pt")[rows].tolist() == [episode / 4] * row["frames"]
            for frame in range(row["frames"] - 1):
                assert pairs[number]["action"].tolist() == action(episode, frame)
                number += 1
        (last,) = [row for row in pinned if row["video"] == clips[-1]["video"]]
        ids = load(run, name, "tokenized-frames.pt")[-last["frames"] :]
        cut = Cut(1, 96, 128, every=True)
        for frame, clip in enumerate(read_clips(folder / last["path"], cut, span=Span.of(last))):
            assert torch.equal(ids[frame], tokenizer.encode(clip.pixels[None])[0])
    scale = files.read_json(run.tokens.samples / "action_stats.json")
    assert (scale["normalize"], scale["shift"], scale["scale"]) == ("none", [0] * 7, [1] * 7)
    assert scale["names"][0] == "motor_0"


def test_both_versions_and_any_shards_give_the_same(tmp_path, robots):
    first = prepared(tmp_path / "a", ACTIONS, f"data.input={robots['v3.0']}", shards=1)
    again = prepared(
        tmp_path / "b",
        ACTIONS,
        f"data.input={robots['v3.0']}",
        "data.batch_size=3",
        "data.decoders=0",
        shards=3,
    )
    assert samples(again) == samples(first)
    # What one file of many episodes says of its bits is not what many files say.
    second = prepared(tmp_path / "c", ACTIONS, f"data.input={robots['v2.1']}", shards=2)
    assert samples(second).keys() == samples(first).keys()
    for name in ("train/actions.pt", "val/state.pt", "clips.jsonl"):
        assert samples(second)[name] == samples(first)[name]


def test_descriptions_become_prompts_and_splits_are_kept(tmp_path):
    robot = Robot((20, 18, 25, 19), info={"splits": {"train": "0:2", "val": "2:3", "test": "3:4"}})
    folder = robot.write(tmp_path / "robot")
    run = prepared(tmp_path / "run", "ar_tiny_v2w", f"data.input={folder}")
    rows = files.read_jsonl(run.tokens.samples / "samples.jsonl")
    parts = {row["video"]: (row["sample"].split("_")[0], row["prompt"]) for row in rows}
    assert parts == {
        f"episode_{i:06d}": (part, TASKS[i % 2])
        for i, part in enumerate(("train", "train", "val", "test"))
    }
    # A model of video alone takes them too, and an episode of every file is a video of its own.
    clips = prepared(
        tmp_path / "clips", "ar_tiny", f"data.input={folder}", "data.clips=all", "data.stride=4"
    )
    table = files.read_jsonl(clips.tokens.clips)
    assert [row["video"] for row in table] == [f"episode_{i:06d}" for i in (0, 1, 2, 2, 2, 3)]
    assert [row["time"] for row in table] == [0, 0, 0, 0.4, 0.8, 0]
    documents = split_documents(table, clips.recipe().data.split)
    assert documents == {"train": [0, 1], "validation": [2, 3, 4], "test": [5]}


def test_resampled_with_actions_normalised_of_another_width(tmp_path):
    robot = Robot((9, 6, 8, 5), version="v2.1", width=14)
    folder = robot.write(tmp_path / "robot")
    how = [f"data.input={folder}", "data.frame_rate=5", "data.normalize_action=mean_std"]
    refused = cosmos_hpc("submit", f"recipe={ACTIONS}", *how, "--dry-run", cwd=tmp_path)
    assert refused.code == 2
    assert "has 14 numbers, and model.action_width is 7; set model.action_width=14" in refused.err
    stages = ("--stages", "download,preprocess,finalize", "--name", "x")
    words = ("submit", f"recipe={ACTIONS}", *how, "model.action_width=null", *stages)
    for _ in range(2):  # the second continues the first
        done = cosmos_hpc(*words, cwd=tmp_path)
        assert done.code == 0, done.err
    run = RunFolder(tmp_path / "runs" / "x")
    assert run.recipe().model.action_width == 14
    every = np.array([action(e, f, 14) for e in range(4) for f in range(robot.lengths[e])])
    scale = files.read_json(run.tokens.samples / "action_stats.json")
    assert scale["shift"] == pytest.approx(every.mean(0), rel=1e-5)
    assert scale["scale"] == pytest.approx(every.std(0), rel=1e-5)
    for row in files.read_jsonl(run.tokens.samples / "clips.jsonl"):
        episode = int(row["video"].removeprefix("episode_"))
        assert row["frames"] == -(-robot.lengths[episode] // 2)
        part = FOLDERS[row["part"]]
        found = load(run, part, "actions.pt")[row["first"] : row["first"] + row["frames"]]
        wanted = np.array([action(episode, f * 2, 14) for f in range(row["frames"] - 1)])
        expected = (wanted - every.mean(0)) / every.std(0)
        assert found[:-1].numpy() == pytest.approx(expected, abs=1e-4)
        assert found[-1].isnan().all()


def test_what_is_broken_is_listed_with_its_episode(tmp_path):
    robot = Robot(
        (5,) * 12,
        version="v3.0",
        files=3,
        actions={(4, 2): [math.nan] * 7},
    )
    folder = robot.write(tmp_path / "robot")
    (folder / "videos" / FRONT / "chunk-000" / "file-002.mp4").unlink()
    (folder / "data" / "chunk-000" / "file-003.parquet").unlink()
    run = prepared(
        tmp_path / "run", ACTIONS, f"data.input={folder}", "data.max_failed_fraction=0.9"
    )
    failed = {row["video"]: (row["kind"], row["reason"]) for row in run_failed(run)}
    assert failed == {
        "episode_000004": ("actions", "action of frame 2 holds NaN or infinity"),
        **{f"episode_{i:06d}": ("missing", "the file is not there") for i in (6, 7, 8)},
        **{
            f"episode_{i:06d}": ("annotation", "file-003.parquet with its actions is not there")
            for i in (9, 10, 11)
        },
    }


def run_failed(run):
    return files.read_jsonl(run.tokens.failed)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_episodes_of_other_length_than_their_rows(tmp_path, version):
    robot = Robot((5, 6, 7, 8), version=version, shown={1: 4, 2: 9})
    folder = robot.write(tmp_path / "robot")
    how = (f"data.input={folder}", "data.max_failed_fraction=0.9")
    for recipe, more in ((ACTIONS, ()), ("ar_tiny", ("data.clips=all", "data.frames=1"))):
        run = prepared(tmp_path / recipe, recipe, *how, *more)
        failed = {row["video"]: (row["kind"], row["reason"]) for row in run_failed(run)}
        assert {video: error for video, (error, _) in failed.items()} == {
            "episode_000001": "length",
            "episode_000002": "length",
        }
        assert failed["episode_000001"][1].startswith("6 frames are described, ")
        assert failed["episode_000001"][1].endswith(" 4")


def test_pictures_that_are_damaged(tmp_path, monkeypatch):
    from tests.worker import lerobot

    whole = lerobot.png
    made = iter(range(1000))
    monkeypatch.setattr(lerobot, "png", lambda p: whole(p)[: 40 if next(made) == 7 else None])
    folder = Robot((5, 5, 5), version="v2.1", codec="image").write(tmp_path / "robot")
    run = prepared(tmp_path / "run", ACTIONS, f"data.input={folder}")
    (failed,) = run_failed(run)
    assert (failed["video"], failed["kind"]) == ("episode_000001", "truncated")
    assert "picture 2: " in failed["reason"]


def test_one_of_several_cameras(tmp_path):
    folder = Robot((4, 5, 4), cameras=(FRONT, WRIST)).write(tmp_path / "robot")
    refused = cosmos_hpc("plan", f"recipe={ACTIONS}", f"data.input={folder}", cwd=tmp_path)
    assert refused.code == 2
    assert f"several cameras; set data.camera; cameras are {FRONT}, {WRIST}" in refused.err
    found = {}
    for camera in (FRONT, "wrist"):
        _, rows = list_source(Wanted(str(folder), camera=camera, episodes="1"), print)
        (row,) = rows
        cut = Cut(1, 96, 128, every=True)
        clips = list(read_clips(folder / row["path"], cut, span=Span.of(row)))
        found[camera] = [int(clip.pixels[0, 0, 90, 64]) for clip in clips]
    assert all(abs(value - 60) < 12 for value in found[FRONT])
    assert all(abs(value - 180) < 12 for value in found["wrist"])


def test_planning_imports_no_numpy(tmp_path):
    """The login side reads the layout of version 2 without it."""
    folder = Robot((4, 5, 4), version="v2.1").write(tmp_path / "robot")
    code = (
        "import sys; from cosmos_hpc.data.sources import list_source; "
        "from cosmos_hpc.data.wanted import Wanted; "
        f"assert len(list_source(Wanted({str(folder)!r}), print)[1]) == 3; "
        "assert not {'numpy', 'pyarrow', 'torch', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
