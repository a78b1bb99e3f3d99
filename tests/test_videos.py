import os

import pytest

from cosmos_hpc.errors import RequestError
from cosmos_hpc.videos import list_videos


def test_recursive_sorted_and_only_videos(tmp_path):
    for name in ("b.mp4", "a/z.MKV", "a/notes.txt", "c d.webm"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert list_videos(str(tmp_path)) == ["a/z.MKV", "b.mp4", "c d.webm"]


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.mp4").touch()
    (tmp_path / "set" / "loop").symlink_to(tmp_path)
    assert len(list_videos(str(tmp_path))) == 1


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    os.close(os.open(os.path.join(os.fsencode(tmp_path), b"\xff\n.mp4"), os.O_CREAT))
    (name,) = list_videos(str(tmp_path))
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
