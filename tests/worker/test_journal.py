import numpy as np
import pytest

from cosmos_hpc.worker.journal import Journal


def filled(path, count):
    with Journal(path, 4) as journal:
        for i in range(count):
            clips = np.full((i % 3, 4), 63_990 + i, np.uint16)
            journal.append([({"index": i, "video": f"{i}.mp4"}, clips)])
    return path


def test_what_was_written_is_read_back(tmp_path):
    path = filled(tmp_path / "s.jsonl", 6)
    with Journal(path, 4) as journal:
        assert [row["index"] for row in journal.rows] == list(range(6))
        assert journal.ids().tolist() == [[63_990 + i] * 4 for i in range(6) for _ in range(i % 3)]


@pytest.mark.parametrize("cut_lines", [0, 1, 30])
@pytest.mark.parametrize("cut_ids", [0, 1, 8, 9])
def test_after_any_cut_whole_videos_remain_and_work_goes_on(tmp_path, cut_lines, cut_ids):
    path = filled(tmp_path / "s.jsonl", 6)
    for name, cut in (("s.jsonl", cut_lines), ("s.ids", cut_ids)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) - cut])
    with Journal(path, 4) as journal:
        kept = len(journal.rows)
        assert kept == 6 if not cut_lines and not cut_ids else kept in (4, 5)
        for i in range(kept, 6):
            clips = np.full((i % 3, 4), 63_990 + i, np.uint16)
            journal.append([({"index": i, "video": f"{i}.mp4"}, clips)])
    whole = filled(tmp_path / "whole.jsonl", 6)
    assert path.read_bytes() == whole.read_bytes()
    assert path.with_suffix(".ids").read_bytes() == whole.with_suffix(".ids").read_bytes()


def test_ids_that_do_not_match_their_line_are_done_again(tmp_path):
    path = filled(tmp_path / "s.jsonl", 6)
    ids = bytearray((tmp_path / "s.ids").read_bytes())
    ids[-1] ^= 1
    (tmp_path / "s.ids").write_bytes(ids)
    with Journal(path, 4) as journal:
        assert len(journal.rows) == 5
