import json
import os
import random
import subprocess

import pytest

from cosmos_hpc.data.videos import list_video_files
from cosmos_hpc.errors import RequestError
from tests.conftest import list_videos


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_list(folder, lines, name="list.jsonl"):
    rows = [line if isinstance(line, (str, bytes)) else json.dumps(line) for line in lines]
    content = b"".join((r.encode() if isinstance(r, str) else r) + b"\n" for r in rows)
    (folder / name).write_bytes(content)
    return str(folder / name)


def test_a_jsonl_gives_paths_and_prompts_in_its_order(tmp_path):
    touch(tmp_path, "b.mp4", "in/a.mkv")
    rows = [
        {"visual_input": "b.mp4", "prompt": "a ünï\ncode prompt"},
        {"video": "in/a.mkv", "id": 7, "prompt": None},
        {"video": str(tmp_path / "elsewhere.webm"), "prompt": ""},
    ]
    source = write_list(tmp_path, rows)
    assert list_video_files(source) == (
        str(tmp_path),
        [
            {"path": "b.mp4", "prompt": "a ünï\ncode prompt"},
            {"path": "in/a.mkv"},
            {"path": str(tmp_path / "elsewhere.webm"), "prompt": ""},
        ],
    )


def test_a_list_has_a_path_a_line(tmp_path):
    touch(tmp_path, "b.mp4", " in/a.mkv", "\xe4.avi")
    lines = [b"\xef\xbb\xbfb.mp4\r", b"", b"   ", b" in/a.mkv", b"\xe4.avi", b"#1.mov"]
    source = write_list(tmp_path, lines, "list.txt")
    names = [os.fsencode(name) for name in list_videos(source)]
    assert names == [b"b.mp4", b" in/a.mkv", b"\xe4.avi", b"#1.mov"]


def test_names_with_newlines_and_raw_bytes_in_a_jsonl(tmp_path):
    names = [b"two\nlines.mp4", b"\xff\xfe.mp4", b'quote".mp4', "ü.mp4".encode()]
    for name in names:
        os.close(os.open(os.path.join(os.fsencode(tmp_path), name), os.O_CREAT))
    escaped = write_list(tmp_path, [{"video": os.fsdecode(name)} for name in names])
    assert [os.fsencode(name) for name in list_videos(escaped)] == names
    raw = write_list(tmp_path, [b'{"video": "\xff\xfe.mp4"}'], "raw.jsonl")
    assert [os.fsencode(name) for name in list_videos(raw)] == [b"\xff\xfe.mp4"]


def test_repeated_entries_are_taken_once_and_mentioned(tmp_path):
    touch(tmp_path, "a.mp4", "in/a.mp4")
    rows = [
        {"video": "a.mp4", "prompt": "one"},
        {"video": "./a.mp4", "prompt": "one"},
        {"video": "a.mp4", "prompt": "two"},
        {"video": "in//a.mp4"},
        {"video": str(tmp_path / "a.mp4"), "prompt": "one"},
        {"video": "in/a.mp4"},
    ]
    notes = []
    _, found = list_video_files(write_list(tmp_path, rows), notes.append)
    # Another prompt is another entry, and so is another folder.
    assert [(row["path"], row.get("prompt")) for row in found] == [
        ("a.mp4", "one"),
        ("a.mp4", "two"),
        ("in/a.mp4", None),
    ]
    (note,) = notes
    assert "3 of 6 entries of" in note
    assert "left out (the first is line 2)" in note


def test_names_that_resolve_to_one_file_are_one_video(tmp_path):
    touch(tmp_path, "a.mp4", "in/b.mp4", "blobs/1234")
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    (tmp_path / "folder").symlink_to("in")
    (tmp_path / "hub.mp4").symlink_to("blobs/1234")
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / "a.mp4")
    rows = [
        {"video": "link.mp4", "prompt": "one"},
        {"video": "a.mp4", "prompt": "one"},
        {"video": "in/../a.mp4", "prompt": "two"},
        {"video": "folder/b.mp4"},
        {"video": "in/b.mp4"},
        {"video": "hub.mp4"},
        {"video": "hard.mp4"},
        {"video": "missing.mp4"},
        {"video": str(tmp_path / "missing.mp4")},
    ]
    notes = []
    _, found = list_video_files(write_list(tmp_path, rows), notes.append)
    # The other prompt of a file keeps the name of the first: all of a file goes to one part.
    assert [(row["path"], row.get("prompt")) for row in found] == [
        ("link.mp4", "one"),
        ("link.mp4", "two"),
        ("folder/b.mp4", None),
        ("hub.mp4", None),
        ("hard.mp4", None),
        ("missing.mp4", None),
    ]
    (note,) = notes
    assert "3 of 9 entries of" in note
    assert "the first is line 2" in note


def test_one_file_where_its_folder_is_mounted_twice(small_disk, tmp_path):
    touch(small_disk, "a.mp4", "hard.mp4", "other.mp4")
    (small_disk / "hard.mp4").unlink()
    (small_disk / "hard.mp4").hardlink_to(small_disk / "other.mp4")
    (again := tmp_path / "again").mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(again)], check=True)
    try:
        names = [str(f / n) for f in (small_disk, again) for n in ("a.mp4", "other.mp4")]
        names.append(str(small_disk / "hard.mp4"))
        found = list_videos(write_list(tmp_path, [{"video": name} for name in names]))
    finally:
        subprocess.run(["umount", "-l", str(again)], check=True)
    # Of what has hard links, nothing tells one from another mount.
    assert found == [names[0], names[1], names[3], names[4]]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "it is not JSON .* write one object per line"),
        ('{"video": "a.mp4"} {"video": "b.mp4"}', "it is not JSON"),
        ("[]", "it is not an object; .*, with the path under visual_input or video"),
        ('"a.mp4"', "it is not an object"),
        ("{}", "it has no path; give it under visual_input or video"),
        ('{"path": "a.mp4"}', "it has no path"),
        ('{"video": 7}', "video is a number; it must be the path of a video, a text"),
        ('{"video": null}', "video is null"),
        ('{"visual_input": ["a.mp4"]}', "visual_input is a list"),
        ('{"video": "a.mp4", "visual_input": "b.mp4"}', "it has both visual_input and video; keep"),
        ('{"video": "a.mp4", "video": "b.mp4"}', '"video" is given twice; keep one'),
        ('{"video": "a.mp4", "prompt": 3}', "prompt is a number; it must be a text or be left out"),
        ('{"video": "a.mp4", "prompt": "\\ud800"}', "prompt is not text in UTF-8"),
        (b'{"video": "a.mp4", "prompt": "\xff"}', "prompt is not text in UTF-8"),
        ('{"video": "\\ud800.mp4"}', "holds a character that no file name can hold"),
        ('{"video": "a\\u0000.mp4"}', "holds a character that no file name can hold"),
        ('{"video": ""}', '"" is no video by its name; it must end in one of .mp4, .mov'),
        ('{"video": "a.npy"}', "is no video by its name"),
        ("[" * 100_000, "it is nested too deeply; write one flat object per line"),
        ('{"video": "' + "a" * (1 << 20), "it is longer than 1048576 bytes"),
    ],
)
def test_a_wrong_line_is_named_with_what_to_do(tmp_path, line, says):
    touch(tmp_path, "a.mp4")
    source = write_list(tmp_path, [{"video": "a.mp4"}, "", line])
    with pytest.raises(RequestError, match=rf"list.jsonl, line 3: .*{says}"):
        list_video_files(source)


def test_numbers_of_any_size_in_other_keys_are_no_matter(tmp_path):
    touch(tmp_path, "a.mp4")
    line = '{"video": "a.mp4", "n": ' + "9" * 5000 + ', "x": 1e999, "y": -Infinity, "z": NaN}'
    assert list_videos(write_list(tmp_path, [line])) == ["a.mp4"]


def test_a_list_of_nothing(tmp_path):
    with pytest.raises(RequestError, match="holds no video: all of its lines are blank"):
        list_video_files(write_list(tmp_path, ["", "  "]))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(RequestError, match="holds no video: none of its 0 files"):
        list_video_files(str(tmp_path / "folder.jsonl"))


def test_a_list_of_another_machine_is_refused_but_single_videos_may_be_missing(tmp_path):
    rows = [{"video": f"{i}.mp4"} for i in range(300)]
    source = write_list(tmp_path, rows)
    with pytest.raises(RequestError, match=r"none of 100 videos .* exists, the first is \".*/0.mp"):
        list_video_files(source)
    touch(tmp_path, "3.mp4")
    assert len(list_videos(source)) == 300


def _mutations(rng):
    """Lines that are nearly entries, and lines that are nothing."""
    keys = ["video", "visual_input", "prompt", "x", "\ud800", ""]
    values = ["a.mp4", "b.mkv", "\udcff.mp4", "\ud800", "\0", "", "x" * 5000, 10**50, -1e400]
    values += [None, True, [], {}, ["a.mp4"], {"video": "a.mp4"}]
    pick = rng.random()
    if pick < 0.3:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(60)))
    pairs = [(rng.choice(keys), rng.choice(values)) for _ in range(rng.randrange(4))]
    text = "{" + ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in pairs) + "}"
    line = bytearray(text.encode())
    if pick < 0.6:
        for _ in range(rng.randrange(1, 4)):
            line[rng.randrange(len(line))] = rng.randrange(256)
    elif pick < 0.8:
        del line[rng.randrange(len(line)) :]
    return bytes(line)


def test_whatever_a_list_holds_gives_entries_or_one_sentence(tmp_path):
    rng = random.Random(0)
    touch(tmp_path, "a.mp4")
    read = refused = 0
    for _ in range(3000):
        name, good = rng.choice([("list.jsonl", b'{"video": "a.mp4"}'), ("list.txt", b"a.mp4")])
        line = _mutations(rng) + (b".mp4" if name == "list.txt" else b"")
        source = write_list(tmp_path, [good, line], name)
        try:
            _, rows = list_video_files(source)
        except RequestError as e:
            refused += 1
            assert source in str(e)
            assert "\n" not in str(e)
            str(e).encode()
        else:
            read += 1
            assert rows
            for row in rows:
                os.fsencode(row["path"])
                row.get("prompt", "").encode()
    assert read > 100
    assert refused > 100
