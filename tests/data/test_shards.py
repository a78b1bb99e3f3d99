import itertools
import json
import random

import pytest

from cosmos_hpc.data.shards import (
    CONTENT,
    balanced_bounds,
    folders_above,
    read_marker,
    write_marker,
)
from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils import files

MARKER = {
    "shard": 3,
    "videos": 8,
    "clips": 7,
    "failed": 1,
    "padded": 0,
    "ids_per_clip": 30,
    "sha256": {name: "0" * 63 + str(i) for i, name in enumerate(CONTENT)},
    "seconds": {"decode": 1.5, "tokenize": 2.0},
}


def shard_costs(costs, shards):
    bounds = balanced_bounds(costs, shards)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, len(costs), shards + 1)
    assert all(a < b for a, b in itertools.pairwise(bounds))
    return [sum(costs[a:b]) for a, b in itertools.pairwise(bounds)]


def test_videos_of_the_same_cost_are_dealt_evenly():
    assert balanced_bounds([1] * 11, 3) == [0, 4, 7, 11]
    assert balanced_bounds([7] * 8, 8) == list(range(9))


def test_shards_are_off_their_share_by_no_more_than_a_video():
    random.seed(1)
    for _ in range(200):
        costs = [int(random.lognormvariate(5, 1.5)) + 1 for _ in range(random.randint(1, 300))]
        shards = random.randint(1, len(costs))
        got = shard_costs(costs, shards)
        assert max(got) <= sum(costs) / shards + max(costs)


def test_long_videos_weigh_more_than_many_short_ones():
    # By count the first shard would have 400 of the 410.
    assert shard_costs([100] * 4 + [1] * 10, 2) == [200, 210]


@pytest.mark.parametrize("costs", [[1000, 1, 1, 1], [1, 1, 1, 1000], [1, 1000, 1, 1]])
def test_every_shard_has_a_video_also_beside_a_huge_one(costs):
    for shards in (1, 2, 3, 4):
        shard_costs(costs, shards)


def test_folders_of_absolute_paths_are_found_for_each_top_folder():
    paths = [
        "a.mp4",
        "/data/x/1/a.mp4",
        "/data/x/2/a.mp4",
        "/mnt/y/a.mp4",
        "/data/x/b.mp4",
        "/c.mp4",
    ]
    assert folders_above(paths) == ["/", "/data/x", "/mnt/y"]
    assert folders_above(["a.mp4", "b/c.mp4"]) == []


def test_a_marker_is_read_as_it_was_written(tmp_path):
    assert read_marker(tmp_path) is None
    write_marker(tmp_path, MARKER)
    marker = read_marker(tmp_path)
    assert (marker.shard, marker.videos, marker.clips, marker.failed) == (3, 8, 7, 1)
    assert set(marker.sha256) == set(CONTENT)


def says_what_to_do(folder):
    with pytest.raises(WorkError, match=r"done.json is damaged.*delete .* run the same command"):
        read_marker(folder)


def test_a_flipped_bit_anywhere_and_every_truncation_of_a_marker_is_noticed(tmp_path):
    write_marker(tmp_path, MARKER)
    path = tmp_path / "done.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        if not _same(changed, whole):  # one blank instead of another between two values
            says_what_to_do(tmp_path)
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        says_what_to_do(tmp_path)


def _same(changed, whole):
    try:
        return json.loads(changed) == json.loads(whole)
    except ValueError:
        return False


WRONG = [1, -1, 1.5, "8", True, [], {}, None, 10**400, "x" * 64]


@pytest.mark.parametrize("key", [*MARKER, "digest"])
def test_values_of_another_type_are_noticed(tmp_path, key):
    write_marker(tmp_path, MARKER)
    path = tmp_path / "done.json"
    whole = json.loads(path.read_text())
    for value in WRONG:
        if json.dumps(value) != json.dumps(whole[key]):
            path.write_text(json.dumps({**whole, key: value}))
            says_what_to_do(tmp_path)
    del whole[key]
    path.write_text(json.dumps(whole))
    says_what_to_do(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "7", '"x"', "true", "{}", "[" * 100_000, '{"a": ' * 5000, "\xff", "9" * 5000]
)
def test_what_is_no_marker_at_all_is_noticed(tmp_path, text):
    (tmp_path / "done.json").write_text(text, encoding="latin-1")
    says_what_to_do(tmp_path)


def test_a_marker_with_its_own_digest_but_wrong_content_is_noticed(tmp_path):
    """As another version of the package may have written it."""
    from cosmos_hpc.data.shards import _digest

    for change in ({"videos": "8"}, {"clips": -1}, {"sha256": {}}, {"seconds": None}):
        row = {**MARKER, **change}
        files.write_json(tmp_path / "done.json", {**row, "digest": _digest(row)})
        says_what_to_do(tmp_path)
