import json
import math

import pytest

from cosmos_hpc.data.bridge import (
    AnnotationError,
    action_width,
    list_clips,
    list_instructions,
    movements,
)
from cosmos_hpc.data.sources import list_source
from cosmos_hpc.data.wanted import Wanted
from cosmos_hpc.errors import RequestError
from tests.worker.robots import annotation


def annotated(folder, part, clip, value):
    path = folder / "annotation" / part / f"{clip}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    (folder / "videos" / part / clip).mkdir(parents=True)


def test_clips_by_part_and_number(tmp_path):
    for part, clip in (("train", "10"), ("train", "9"), ("val", "2")):
        annotated(tmp_path, part, clip, {})
    (tmp_path / "videos" / "val" / "3").mkdir()  # without an annotation
    assert list_clips(str(tmp_path)) == [
        {
            "path": f"videos/{folder}/{clip}/rgb.mp4",
            "annotation": f"annotation/{folder}/{clip}.json",
            "part": part,
        }
        for folder, clip, part in (
            ("train", "9", "train"),
            ("train", "10", "train"),
            ("val", "2", "validation"),
            ("val", "3", "validation"),
        )
    ]


def test_a_folder_that_is_not_divided_leaves_the_parts_to_the_recipe(tmp_path):
    annotated(tmp_path, "train", "1", {})
    assert [set(row) for row in list_clips(str(tmp_path))] == [{"path", "annotation"}]


def test_folders_that_are_no_robot_clips(tmp_path):
    with pytest.raises(RequestError, match="has no actions; task action takes a LeRobot data set"):
        list_source(Wanted(str(tmp_path), action="action"), print)
    (tmp_path / "annotation").mkdir()
    (tmp_path / "videos").mkdir()
    with pytest.raises(RequestError, match="holds no clip"):
        list_clips(str(tmp_path))
    annotated(tmp_path, "extra", "1", {})
    with pytest.raises(RequestError, match="holds a part 'extra'; parts are train, val, test"):
        list_clips(str(tmp_path))


def test_instructions_and_what_has_none(tmp_path):
    annotated(tmp_path, "train", "1", {"texts": ["put the pot away", "another"]})
    annotated(tmp_path, "train", "2", {"texts": []})
    annotated(tmp_path, "train", "3", "{")
    annotated(tmp_path, "train", "4", "[]")
    (tmp_path / "videos" / "train" / "5").mkdir()
    rows = list_instructions(str(tmp_path), print)
    assert rows[0]["prompt"] == "put the pot away"
    assert [row.get("error") for row in rows] == [None] + ["annotation"] * 4
    reasons = [row["reason"] for row in rows[1:]]
    assert reasons[0] == "its annotation has no text in texts"
    assert reasons[1].startswith("3.json is not JSON: ")
    assert reasons[2:] == ["4.json holds no mapping", "it has no annotation 5.json"]


def test_movements_of_the_right_size():
    robot = movements(annotation(5), 7)
    assert [len(robot[name]) for name in ("action", "state", "gripper")] == [4, 5, 5]
    # A state keeps all of its values, whatever an action has.
    wide = movements({**annotation(5), "state": [[0.5] * 8] * 5}, 7)
    assert wide["state"] == [[0.5] * 8] * 5


def test_the_width_of_actions_is_that_of_the_first_that_can_be_read(tmp_path):
    annotated(tmp_path, "train", "1", "{")
    with pytest.raises(RequestError, match="no annotation has an action"):
        action_width(str(tmp_path))
    annotated(tmp_path, "train", "2", {"action": [[0.0] * 9]})
    assert action_width(str(tmp_path)) == 9


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"action": None}, "its annotation has no action"),
        ({"action": []}, "its annotation has no action"),
        ({"action": [[0.0] * 7] * 3}, "3 actions go with 4 of state, not 5"),
        ({"action": [[0.0] * 6] * 4}, "action 0 has 6 numbers, not 7"),
        ({"action": [[0.0] * 7, "up"]}, "action 1 is no list of numbers"),
        ({"action": [[math.nan] * 7] * 4}, "action 0 holds NaN or infinity"),
        ({"state": [[math.inf] * 7] * 5}, "state 0 holds NaN or infinity"),
        ({"continuous_gripper_state": [1.0]}, "4 actions go with 5 of continuous_gripper_state"),
        ({"continuous_gripper_state": None}, "continuous_gripper_state is no list of numbers"),
    ],
)
def test_movements_that_cannot_be_used(changes, reason):
    with pytest.raises(AnnotationError, match=reason) as e:
        movements({**annotation(5), **changes}, 7)
    assert e.value.kind == "actions"
