import numpy as np
import pytest

from cosmos_hpc.worker.datasets.journal import Journal

#: Video and clip of each line; None ends a video. Videos take turns.
LINES = [(2, 0), (0, 0), (1, None), (0, 1), (2, 1), (0, None), (3, 0), (2, None)]


def line(index, clip):
    row = {"index": index, "video": f"{index}.mp4"}
    if clip is None:
        return {**row, "last": True}, np.empty((0, 4), np.uint16)
    ids = np.full((1, 4), 63_900 + 10 * index + clip, np.uint16)
    return {**row, "clip": clip, "mark": 100 * clip}, ids


def filled(path, count):
    with Journal(path, 4) as journal:
        for index, clip in LINES[:count]:
            journal.append([line(index, clip)])
    return path


def test_what_was_written_is_read_back_in_the_order_of_videos_and_clips(tmp_path):
    path = filled(tmp_path / "s.jsonl", 8)
    with Journal(path, 4) as journal:
        assert [row["index"] for row in journal.rows] == [index for index, _ in LINES]
        documents = [document.tolist() for document in journal.documents()]
        assert documents == [[63_900 + n] * 4 for n in (0, 1, 20, 21, 30)]
        assert journal.ended() == {0, 1, 2}
        assert journal.finished() == {3: (1, 0)}


@pytest.mark.parametrize("cut_lines", [0, 1, 30])
@pytest.mark.parametrize("cut_ids", [0, 1, 8, 9])
def test_after_any_cut_whole_lines_remain_and_work_goes_on(tmp_path, cut_lines, cut_ids):
    path = filled(tmp_path / "s.jsonl", 7)
    for name, cut in (("s.jsonl", cut_lines), ("s.ids", cut_ids)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) - cut])
    with Journal(path, 4) as journal:
        kept = len(journal.rows)
        assert kept == 7 if not cut_lines and not cut_ids else kept in (4, 5, 6)
        assert len(list(journal.documents())) == sum(c is not None for _, c in LINES[:kept])
        for index, clip in LINES[kept:7]:
            journal.append([line(index, clip)])
    whole = filled(tmp_path / "whole.jsonl", 7)
    assert path.read_bytes() == whole.read_bytes()
    assert path.with_suffix(".ids").read_bytes() == whole.with_suffix(".ids").read_bytes()


def test_ids_that_do_not_match_their_line_are_done_again(tmp_path):
    path = filled(tmp_path / "s.jsonl", 7)
    ids = bytearray((tmp_path / "s.ids").read_bytes())
    ids[-1] ^= 1
    (tmp_path / "s.ids").write_bytes(ids)
    with Journal(path, 4) as journal:
        assert len(journal.rows) == 6
