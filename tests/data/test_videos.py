import os
from pathlib import Path

import pytest

from cosmos_hpc.backends import launch
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.data.file_stats import file_sizes
from cosmos_hpc.data.videos import list_video_files, resolve_source
from cosmos_hpc.errors import RequestError
from tests.conftest import list_videos


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_recursive_sorted_and_only_videos(tmp_path):
    touch(tmp_path, "b.mp4", "a/z.MKV", "a/notes.txt", "c d.webm", "e.mov", "f.avi")
    expected = ["a/z.MKV", "b.mp4", "c d.webm", "e.mov", "f.avi"]
    assert list_video_files(str(tmp_path)) == (str(tmp_path), [{"path": name} for name in expected])


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path, "set/a.mp4")
    (tmp_path / "set" / "loop").symlink_to(tmp_path)
    assert len(list_videos(str(tmp_path))) == 1
    assert len(list_videos(f"{tmp_path}/**/*.mp4")) == 1


def test_a_link_to_a_video_is_not_another_video(tmp_path):
    touch(tmp_path, *(f"a/{number}.mp4" for number in range(10)), "b/copy.mp4")
    for number in range(9):
        (tmp_path / "b" / f"{number}.mp4").symlink_to(f"../a/{number}.mp4")
    (tmp_path / "b" / "hard.mp4").hardlink_to(tmp_path / "a" / "9.mp4")
    for source in (tmp_path, tmp_path / "**/*.mp4"):
        notes = []
        _, rows = list_video_files(str(source), notes.append)
        names = [f"a/{number}.mp4" for number in range(10)]
        assert [row["path"] for row in rows] == [*names, "b/copy.mp4", "b/hard.mp4"]
        (note,) = notes
        assert "9 of 21 videos of" in note
        assert 'the first is "b/0.mp4", which is "a/0.mp4"' in note


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    os.close(os.open(os.path.join(os.fsencode(tmp_path), b"\xff\n.mp4"), os.O_CREAT))
    for source in (tmp_path, tmp_path / "*.mp4"):
        (name,) = list_videos(str(source))
        assert os.fsencode(name) == b"\xff\n.mp4"


def test_what_is_no_file_is_no_video(tmp_path):
    (tmp_path / "a.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    assert list_videos(str(tmp_path)) == ["a.mp4"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.touch(), "is not a folder"),
        (lambda p: p.mkdir(), "holds no video: none of its 0 files ends in .mp4"),
    ],
)
def test_no_videos(tmp_path, make, says):
    folder = tmp_path / "videos"
    make(folder)
    with pytest.raises(RequestError, match=says):
        list_videos(str(folder))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", ["a.mp4"]),
        ("*/*.mp4", ["one/b.mp4", "two/b.mp4"]),
        ("**/*.mp4", ["a.mp4", "one/b.mp4", "one/deep/er/c.mp4", "two/b.mp4"]),
        ("**", ["a.mp4", "one/b.mkv", "one/b.mp4", "one/deep/er/c.mp4", "two/b.mp4"]),
        ("one/**/*.m*", ["b.mkv", "b.mp4", "deep/er/c.mp4"]),
        ("**/er/*", ["one/deep/er/c.mp4"]),
        ("[ot]*/[!c].mp4", ["one/b.mp4", "two/b.mp4"]),
        ("t?o/b.*", ["two/b.mp4"]),
        ("one/../**/er/c.mp4", ["one/deep/er/c.mp4"]),
    ],
)
def test_patterns(tmp_path, pattern, expected):
    touch(tmp_path, "a.mp4", "one/b.mp4", "one/b.mkv", "one/b.txt", "one/deep/er/c.mp4")
    touch(tmp_path, "two/b.mp4")
    assert list_videos(f"{tmp_path}/{pattern}") == expected
    resolved = resolve_source(f"{tmp_path}/{pattern}")
    assert list_videos(resolved) == expected
    assert resolve_source(resolved) == resolved


def test_patterns_leave_other_folders_alone(tmp_path):
    touch(tmp_path, "one/a.mp4", "two/b.mp4", "one/in/c.mp4")
    # Neither is on the way to a match, so it does not matter that they cannot be listed.
    for name in ("two", "one/in"):
        (tmp_path / name / "loop").symlink_to("loop")
    assert list_videos(f"{tmp_path}/one/*.mp4") == ["a.mp4"]
    assert list_videos(f"{tmp_path}/o*/*.mp4") == ["one/a.mp4"]


def test_patterns_that_match_nothing(tmp_path):
    touch(tmp_path, "a.txt")
    with pytest.raises(RequestError, match="none of its 1 matching files ends in .mp4"):
        list_videos(f"{tmp_path}/*")
    with pytest.raises(RequestError, match="matches nothing: .*/no is not a folder"):
        list_videos(f"{tmp_path}/no/*.mp4")


def test_sources_are_resolved_to_one_name(tmp_path, monkeypatch):
    touch(tmp_path, "real/a.mp4", "blobs/1f")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "list.txt").write_text("a.mp4\n")
    # As the Hub's cache does it: the name of the file that is linked to says nothing.
    (tmp_path / "blobs" / "1f").write_text('{"video": "a.mp4"}\n')
    (tmp_path / "real" / "list.jsonl").symlink_to("../blobs/1f")
    monkeypatch.chdir(tmp_path)
    real = str(tmp_path / "real")
    for source, resolved in [
        ("link", real),
        ("./link/", real),
        ("link/list.txt", f"{real}/list.txt"),
        ("link/list.jsonl", f"{real}/list.jsonl"),
        ("link/*.mp4", f"{real}/*.mp4"),
        ("link/**", real),
        ("**/*.mp4", f"{tmp_path}/**/*.mp4"),
    ]:
        assert resolve_source(source) == resolved
        root, rows = list_video_files(resolved)
        assert [Path(root, row["path"]).exists() for row in rows] == [True]
    with pytest.raises(RequestError, match="does not exist"):
        resolve_source("x" * 5000)


def test_folders_whose_names_look_like_patterns(tmp_path):
    touch(tmp_path, "set[1]/a.mp4", "set1/b.mp4")
    assert list_videos(str(tmp_path / "set[1]")) == ["a.mp4"]
    (tmp_path / "link").symlink_to("set[1]")
    resolved = resolve_source(f"{tmp_path}/link/*.mp4")
    assert [name.rpartition("/")[2] for name in list_videos(resolved)] == ["a.mp4"]
    assert resolve_source(resolved) == resolved


def costs_of(root, rows, *overrides):
    return launch.costs_of(root, rows, load_recipe("ar_tiny", overrides).data, print)


def test_costs_follow_from_what_is_decoded(tmp_path):
    for name, size in (("a.mp4", 10), ("b.mp4", 500_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    root, rows = list_video_files(str(tmp_path))
    assert costs_of(root, rows) == ("videos", [1, 1])
    unit, (small, large) = costs_of(root, rows, "data.clips=all")
    assert unit == "bytes"
    assert large - small == 499_990
    assert small > 10  # opening a file costs as well
    assert file_sizes([f"{tmp_path}/a.mp4", f"{tmp_path}/no", "x" * 5000]) == [10, 0, 0]


def test_with_probe_the_headers_are_read(tmp_path):
    from tests.worker import make_videos

    make_videos.write(tmp_path / "long.mp4", make_videos.frames(40))
    make_videos.write(tmp_path / "long.mkv", make_videos.frames(40))
    make_videos.write(tmp_path / "short.mp4", make_videos.frames(5))
    (tmp_path / "text.mp4").write_text("nothing")
    root, rows = list_video_files(str(tmp_path))
    for clips, expected in (("all", [40, 40, 5, 0]), ("first", [17, 17, 5, 0])):
        unit, costs = costs_of(root, rows, "data.probe=true", f"data.clips={clips}")
        assert unit == "frames"
        assert [cost - costs[3] for cost in costs] == expected


def test_probe_without_pyav_says_so(tmp_path, monkeypatch):
    import sys

    touch(tmp_path, "a.mp4")
    root, rows = list_video_files(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cosmos_hpc.worker.video.probe", raising=False)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RequestError, match=r"data.probe=true reads .* av is not installed; pip"):
        costs_of(root, rows, "data.probe=true")


def test_copies_are_one_video_where_content_counts(tmp_path):
    """So that none is trained on and validated on; by their names they are videos of their own."""
    (tmp_path / "a.mp4").write_bytes(b"one video")
    (tmp_path / "b.mp4").write_bytes(b"another..")
    (tmp_path / "copy.mp4").write_bytes(b"one video")
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / "b.mp4")
    (tmp_path / "c.mp4").write_bytes(b"longer than the others")
    listed = tmp_path / "list.txt"
    listed.write_text("copy.mp4\na.mp4\nhard.mp4\nc.mp4\nb.mp4\n")
    notes = []
    assert len(list_video_files(str(tmp_path))[1]) == 5
    rows = list_video_files(str(tmp_path), notes.append, by_content=True)[1]
    assert [row["path"] for row in rows] == ["a.mp4", "b.mp4", "c.mp4"]
    assert "2 of 5 videos" in notes[0] and "copies of another one" in notes[0]
    rows = list_video_files(str(listed), notes.append, by_content=True)[1]
    assert [row["path"] for row in rows] == ["copy.mp4", "hard.mp4", "c.mp4"]
