"""What a LeRobot data set says of itself, and what is refused before a run."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cosmos_hpc.data.lerobot.actions import action_scale
from cosmos_hpc.data.lerobot.info import LeRobot
from cosmos_hpc.data.sources import list_source
from cosmos_hpc.data.videos import video_costs
from cosmos_hpc.data.wanted import Wanted
from cosmos_hpc.errors import RequestError
from tests.worker.lerobot import FRONT, Robot

DEPTH, FLAGGED = "observation.images.front_depth", "observation.images.top"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures in rows: written in no time."""
    place = tmp_path_factory.mktemp("lerobot")
    return Robot((4, 5, 3, 6), version="v2.1", codec="image", width=2).write(place / "robot")


@pytest.fixture
def robot(folder, tmp_path):
    """The same, in which a test may change the information."""
    copy = tmp_path / "robot"
    copy.mkdir()
    for name in ("data", "meta"):
        (copy / name).mkdir()
    for path in (folder / "meta").iterdir():
        (copy / "meta" / path.name).write_bytes(path.read_bytes())
    return copy


def change(robot, **changes):
    path = robot / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rows_of(robot, **how):
    notes = []
    return list_source(Wanted(str(robot), **how), notes.append)[1], notes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"codebase_version": "v3.1"}, "is of version v3.1; the newest that is known here is v3.0"),
        ({"codebase_version": "v1.6"}, "is of version v1.6; convert it to v2.1 or v3.0"),
        ({"codebase_version": "new"}, "is not that of a LeRobot data set"),
        ({"fps": 0}, "fps is 0"),
        ({"features": []}, "is not that of a LeRobot data set"),
        ({"features": {}}, "has no camera"),
        ({"data_path": "../{episode_index}.parquet"}, "data_path leads out of the data set"),
        ({"data_path": "{nothing}"}, "data_path cannot be used"),
        ({"splits": {"train": "0:2", "mine": "2:4"}}, "split 'mine' is '2:4'; splits are train"),
        ({"splits": {"train": "0:2", "val": "some"}}, "split 'val' is 'some'"),
    ],
)
def test_information_that_cannot_be_used(robot, changes, says):
    change(robot, **changes)
    with pytest.raises(RequestError, match=says):
        rows_of(robot)


def test_depth_maps_are_no_cameras(robot):
    features = json.loads((robot / "meta" / "info.json").read_text())["features"]
    flagged = {**features[FRONT], "info": {"video.is_depth_map": True}}
    change(robot, features={**features, DEPTH: features[FRONT], FLAGGED: flagged})
    assert LeRobot.open(robot).cameras == [FRONT]
    assert rows_of(robot)[0][0]["column"] == FRONT  # the only one that is left
    for camera in (DEPTH, "top"):
        with pytest.raises(RequestError, match=f"is a depth map.*cameras are {FRONT}"):
            rows_of(robot, camera=camera)
    with pytest.raises(RequestError, match="has no camera 'left'; cameras are"):
        rows_of(robot, camera="left")
    change(robot, features={DEPTH: features[FRONT]})
    with pytest.raises(RequestError, match=f"no camera, only depth maps .{DEPTH}"):
        rows_of(robot)


def test_episodes_that_are_chosen(robot):
    chosen = [row["episode"] for row in rows_of(robot, episodes="2-3, 0")[0]]
    assert chosen == [0, 2, 3]
    for text, says in (
        ("0-4", "there is no episode 4; they are 0 to 3"),
        ("7", "there is no episode 7"),
        ("3-1", "give numbers and ranges, such as 0-9,12"),
        ("first", "give numbers and ranges"),
        ("", "give numbers and ranges"),
    ):
        with pytest.raises(RequestError, match=says):
            rows_of(robot, episodes=text)


def test_splits_of_which_some_episodes_are_in_none(robot):
    change(robot, splits={"train": "0:2", "test": "3:4"})
    rows, notes = rows_of(robot)
    assert [(row["episode"], row["part"]) for row in rows] == [
        (0, "train"),
        (1, "train"),
        (3, "test"),
    ]
    assert notes == ["1 episodes are in none of the splits of meta/info.json and are left out"]
    with pytest.raises(RequestError, match="none of the episodes is in a split"):
        rows_of(robot, episodes="2")


def test_what_is_said_of_episodes(robot):
    lines = [
        {"episode_index": 0, "tasks": ["pick", "place "], "length": 4},
        {"episode_index": 1, "tasks": [], "length": 5},
        {"episode_index": 2, "tasks": ["x"], "length": None},
    ]
    path = robot / "meta" / "episodes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, _ = rows_of(robot, prompts=True)
    assert rows[0]["prompt"] == "pick; place"
    assert [(row["error"], row["reason"]) for row in rows[1:]] == [
        ("annotation", "it has no description of its task"),
        ("annotation", "its length is None"),
    ]
    # Without texts, only what has no length.
    assert [row["video"] for row in rows_of(robot)[0] if "error" in row] == ["episode_000002"]
    assert video_costs(str(robot), rows, clips="all", frames=9) == ("frames", [12, 13, 8])
    path.write_text('{"episode_index": "a"}')
    with pytest.raises(RequestError, match="line 1: it is not an episode"):
        rows_of(robot)
    path.unlink()
    with pytest.raises(RequestError, match="episodes.jsonl cannot be read"):
        rows_of(robot)


def test_places_of_episodes_that_cannot_be(tmp_path):
    robot = Robot((4, 5, 3, 6, 4)).write(tmp_path / "robot")
    path = robot / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path).to_pylist()
    names = ("from_timestamp", "to_timestamp", "file_index")
    begin, end, file = (f"videos/{FRONT}/{name}" for name in names)
    table[1][begin] = float("nan")
    table[2][end] += 0.5
    table[3][file] = None
    pq.write_table(pa.Table.from_pylist(table), path)
    rows, _ = rows_of(robot)
    assert [row.get("error") for row in rows] == [None, "annotation", "length", "annotation", None]
    assert rows[2]["reason"] == "3 frames are described, its part of the video takes 8"
    assert rows[3]["reason"] == "file-000.parquet does not say in which files it lies"
    pq.write_table(pa.table({"episode_index": [0]}), path)
    with pytest.raises(RequestError, match="has no column 'length'"):
        rows_of(robot)


def test_actions_and_their_statistics(robot, folder):
    with pytest.raises(RequestError, match="feature 'move' is not there; those of numbers are"):
        rows_of(robot, action="move")
    with pytest.raises(RequestError, match=f"'{FRONT}' is no row of numbers"):
        rows_of(robot, action=FRONT)
    with pytest.raises(RequestError, match="data.frame_rate=20 is above the 10 frames per second"):
        rows_of(robot, action="action", frame_rate=20)
    scale = action_scale(LeRobot.open(folder), "action", "min_max")
    ends = []
    for key in ("min", "max"):
        numbers = zip(scale[key], scale["shift"], scale["scale"], strict=True)
        ends.append([(value - shift) / by for value, shift, by in numbers])
    assert ends == [pytest.approx([-1, -1]), pytest.approx([1, 1])]
    still = {"action": {"mean": [1.0, 2.0], "std": [0.0, 0.5], "min": [1, 1], "max": [1, 3]}}
    (robot / "meta" / "stats.json").write_text(json.dumps(still))
    assert action_scale(LeRobot.open(robot), "action", "mean_std")["scale"] == [1, 0.5]
    (robot / "meta" / "stats.json").write_text("{}")
    with pytest.raises(RequestError, match="has no mean of 'action' in its statistics"):
        rows_of(robot, action="action", normalize_action="mean_std")


def test_settings_of_other_sources(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(RequestError, match="data.camera=front goes with a LeRobot data set, and"):
        rows_of(tmp_path, camera="front")
    with pytest.raises(RequestError, match="has no actions; task action takes a LeRobot data set"):
        rows_of(tmp_path, action="action")
