"""When the stages of a run were worked on."""

import os
import shutil

from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.timeline import busy_seconds, merged, read_stays
from cosmos_hpc.utils import files


def _took(run):
    return {
        s.label: s.ended and (s.ended - s.started, s.how) for s in read_stays(run, run.recipe())
    }


def test_of_this_machine_by_the_last_lines_of_logs(old_run, tmp_path):
    run = RunFolder(old_run.path)
    took = _took(run)
    assert list(took) == ["download", "preprocess.0", "preprocess.1", "finalize", "train"]
    assert 15 < took["train"][0] < 18 and 4 < took["preprocess.0"][0] < 7
    assert {how for _, how in took.values()} == {"done"}
    # A copy says the same, whenever it is made and wherever its clock is.
    stays = read_stays(run, run.recipe())
    for stay in stays:
        text = stay.log.read_text(errors="replace").replace("\n12:", "\n23:")
        stay.log.write_text("23" + text[2:] if text.startswith("12:") else text)
        os.utime(stay.log)
    assert _took(run) == took
    # Two days later, by the clock of the file system as well.
    log = stays[-1].log
    os.utime(log, (stays[-1].ended + 2 * 86400 + 3,) * 2)
    assert _took(run)["train"][0] > 2 * 86400
    (run.train.path / "done.json").unlink()
    assert _took(run)["train"][1] == ""
    log.write_text("")
    os.utime(log, (0, 0))
    assert _took(run)["train"] is None


def test_of_a_cluster_by_what_jobs_noted(old_run):
    run = RunFolder(old_run.path)
    shutil.rmtree(run.logs)
    noted = run.attempts("train", 0)
    row = {"job": "7", "restart": 0, "node": "n1", "log": "logs/train/7.log", "why": ""}
    for time, key, why in (
        (100, "start", ""),
        (160, "end", "stopped"),
        (400, "start", ""),
        (430, "end", "done"),
    ):
        files.append_jsonl(noted, {key: time, **row, "why": why})
    files.append_jsonl(noted, {"start": 500, **row})
    stays = read_stays(run, run.recipe())
    assert [(s.started, s.ended, s.how, s.node) for s in stays] == [
        (100, 160, "stopped", "n1"),
        (400, 430, "done", "n1"),
        (500, None, "", "n1"),
    ]
    assert merged(stays) == [(100, 160), (400, 430), (500, 500)]
    assert busy_seconds(stays) == 90
    assert read_stays(run, run.recipe(), without="train") == []
