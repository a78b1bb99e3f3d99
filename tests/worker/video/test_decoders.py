"""Decoders are real processes here, and so are their deaths."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.in_flight import InFlight
from cosmos_hpc.worker.video import decoders as module
from cosmos_hpc.worker.video.clips import Cut, read_clips
from cosmos_hpc.worker.video.decoders import Decoded, DecodeJob, Decoders, Finished, InThisProcess
from tests.conftest import REPOSITORY
from tests.worker import make_videos

CUT = Cut(9, 48, 80, every=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five videos of 3, 5, 7, 9 and 11 clips."""
    path = tmp_path_factory.mktemp("videos")
    pictures = make_videos.noisy(100)
    for i in range(5):
        make_videos.write(path / f"{i}.mp4", pictures[i : 30 + i * 19])
    return path


@pytest.fixture
def hostile(monkeypatch):
    site = Path(__file__).parents[1] / "hostile_site"
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{REPOSITORY}")


def jobs(paths):
    return [DecodeJob(i, path) for i, path in enumerate(paths)]


def collect(decoders, during=lambda event: None):
    """Copies of the clips by video and number, and how each video ended."""
    clips, ends = {}, {}
    while (event := decoders.get(wait=True)) is not None:
        during(event)
        if isinstance(event, Decoded):
            assert (event.index, event.clip.number) not in clips
            clips[event.index, event.clip.number] = event.clip.pixels.copy()
            decoders.release(event.slot)
        else:
            assert event.index not in ends
            ends[event.index] = event.error
    return clips, ends


def expected(paths):
    return {
        (i, clip.number): clip.pixels
        for i, path in enumerate(paths)
        for clip in read_clips(path, CUT)
    }


def children():
    """Processes of this one, without the managers that libraries start once and keep."""
    return [c for c in multiprocessing.active_children() if "Manager" not in c.name]


def same(clips, wanted):
    return clips.keys() == wanted.keys() and all(
        np.array_equal(clips[k], wanted[k]) for k in wanted
    )


@pytest.mark.parametrize(("count", "slots"), [(0, 0), (1, 2), (3, 4), (3, 12)])
def test_the_same_clips_with_any_number_of_decoders(tmp_path, folder, count, slots):
    paths = sorted(folder.iterdir())
    in_flight = InFlight(tmp_path / "note.json", {})
    way = (
        Decoders(jobs(paths), CUT, count, slots, in_flight)
        if count
        else InThisProcess(jobs(paths), CUT, in_flight)
    )
    with way as decoders:
        clips, ends = collect(decoders)
    assert same(clips, expected(paths))
    assert ends == dict.fromkeys(range(5))
    assert not children()


def test_decoders_do_without_torch_and_wait_for_slots(tmp_path, folder):
    with Decoders(
        jobs([folder / "4.mp4"] * 3), CUT, 2, 3, InFlight(tmp_path / "n", {})
    ) as decoders:
        events = [decoders.get(wait=True) for _ in range(3)]
        time.sleep(1.0)
        assert decoders.get(wait=False) is None  # all slots are taken
        for child in children():
            score = Path(f"/proc/{child.pid}/oom_score_adj")
            until = time.monotonic() + 30
            while score.read_text().strip() != "1000":
                assert time.monotonic() < until
                time.sleep(0.1)
            assert "torch" not in Path(f"/proc/{child.pid}/maps").read_text()
        decoders.release(events[0].slot)
        assert isinstance(decoders.get(wait=True), Decoded)


def test_a_killed_decoder_is_replaced_and_no_one_is_blamed(tmp_path, folder):
    paths = sorted(folder.iterdir())
    killed = []

    def kill_one(event):
        if isinstance(event, Decoded) and event.clip.number == 1 and len(killed) < 3:
            killed.append(children()[0].pid)
            os.kill(killed[-1], signal.SIGKILL)

    with Decoders(jobs(paths), CUT, 2, 4, InFlight(tmp_path / "note.json", {})) as decoders:
        clips, ends = collect(decoders, kill_one)
    assert len(killed) == 3
    assert same(clips, expected(paths))
    assert ends == dict.fromkeys(range(5))


def test_a_signal_to_all_processes_ends_no_decoder(tmp_path, folder):
    """Slurm sends one to each process of a step, also to those that are just starting."""
    paths = sorted(folder.iterdir())
    warned = set()

    def warn_new_ones():
        while not over.is_set():
            for child in children():
                if child.pid not in warned:
                    warned.add(child.pid)
                    os.kill(child.pid, signal.SIGTERM)
            time.sleep(0.001)

    over = threading.Event()
    threading.Thread(target=warn_new_ones).start()
    try:
        with Decoders(jobs(paths), CUT, 3, 4, InFlight(tmp_path / "n", {})) as decoders:
            clips, _ = collect(decoders)
    finally:
        over.set()
    assert len(warned) == 3
    assert same(clips, expected(paths))


def test_a_video_that_kills_its_decoder_is_found_and_the_others_go_on(
    tmp_path, folder, hostile, capfd
):
    killer = tmp_path / "kills.mp4"
    killer.write_bytes((folder / "0.mp4").read_bytes())
    paths = [folder / "0.mp4", killer, folder / "1.mp4", folder / "2.mp4"]
    with Decoders(jobs(paths), CUT, 2, 4, InFlight(tmp_path / "note.json", {})) as decoders:
        clips, ends = collect(decoders)
    assert ends[1].kind == "killed_worker"
    assert str(ends[1]) == "its decoder ended 2 times in a row: killed by SIGSEGV"
    assert [ends[i] for i in (0, 2, 3)] == [None] * 3
    assert same({k: v for k, v in clips.items() if k[0] == 0}, expected(paths[:1]))
    assert len(clips) == 3 + 5 + 7


def test_a_video_on_which_decoding_hangs_is_given_up(tmp_path, folder, hostile, monkeypatch):
    monkeypatch.setattr(module, "STALL_SECONDS", 4.0)
    hangs = tmp_path / "hangs.mp4"
    hangs.write_bytes(b"x")
    with Decoders(
        jobs([hangs, folder / "0.mp4"]), CUT, 2, 4, InFlight(tmp_path / "note.json", {})
    ) as decoders:
        clips, ends = collect(decoders)
    assert ends[0].kind == "killed_worker"
    assert str(ends[0]).endswith("no frame for 4 s")
    assert ends[1] is None
    assert len(clips) == 3


def test_waiting_for_a_slot_is_not_hanging(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(module, "STALL_SECONDS", 2.0)
    with Decoders(jobs([folder / "0.mp4"]), CUT, 1, 2, InFlight(tmp_path / "n", {})) as decoders:
        first = decoders.get(wait=True)
        time.sleep(5)
        decoders.release(first.slot)
        clips, ends = collect(decoders)
    assert (len(clips), ends) == (2, {0: None})


def test_suspects_are_decoded_alone(tmp_path, folder):
    paths = sorted(folder.iterdir())
    suspects = [DecodeJob(4, paths[4], suspect=True), DecodeJob(3, paths[3], suspect=True)]
    work = suspects + jobs(paths[:3])
    order = []
    with Decoders(work, CUT, 3, 6, InFlight(tmp_path / "note.json", {})) as decoders:
        _, ends = collect(decoders, lambda e: order.append(e.index))
    assert ends == dict.fromkeys(range(5))
    assert order[0] == 4


def test_decoders_that_cannot_start_are_an_error(tmp_path, folder, monkeypatch, capfd):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(site))
    with (
        Decoders(jobs([folder / "0.mp4"]), CUT, 1, 2, InFlight(tmp_path / "n", {})) as decoders,
        pytest.raises(WorkError, match="decoders do not start: exit code"),
    ):
        decoders.get(wait=True)


#: FFmpeg fails to open a file with an input/output error.
FAILS = "import av\ndef fails(*a, **k): raise OSError(5, 'Input/output error')\nav.open = fails\n"
#: So does everybody else.
ALL_FAIL = FAILS + (
    "import builtins\nopens = open\n"
    "builtins.open = lambda p, *a, **k: fails() if str(p).endswith('.mp4') else opens(p, *a, **k)\n"
)


def first_event(code, tmp_path, folder, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{REPOSITORY}")
    note = InFlight(tmp_path / "n", {})
    with Decoders(jobs([folder / "0.mp4"]), CUT, 1, 2, note) as decoders:
        return decoders.get(wait=True)


def test_a_machine_that_cannot_read_is_no_fault_of_the_video(tmp_path, folder, monkeypatch):
    with pytest.raises(WorkError, match=r"cannot read .*0\.mp4: Input/output error; try again"):
        first_event(ALL_FAIL, tmp_path, folder, monkeypatch)


def test_a_file_that_can_be_read_is_its_own_fault(tmp_path, folder, monkeypatch):
    event = first_event(FAILS, tmp_path, folder, monkeypatch)
    assert (event.index, event.error.kind) == (0, "unreadable")


def test_waiting_for_an_event_has_an_end(tmp_path, folder, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import time; time.sleep(2)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{REPOSITORY}")
    with Decoders(jobs([folder / "0.mp4"]), CUT, 1, 2, InFlight(tmp_path / "n", {})) as decoders:
        assert decoders.get(wait=True, seconds=0.2) is None
        assert not decoders.over
        while event := decoders.get(wait=True):
            if isinstance(event, Decoded):
                decoders.release(event.slot)
        assert decoders.over


def test_finished_is_all_that_comes_of_no_video(tmp_path):
    with Decoders([], CUT, 2, 3, InFlight(tmp_path / "n", {})) as decoders:
        assert decoders.get(wait=True) is None
        assert decoders.get(wait=True) is None
    gone = [DecodeJob(0, tmp_path / "gone.mp4")]
    with Decoders(gone, CUT, 1, 2, InFlight(tmp_path / "n", {})) as decoders:
        event = decoders.get(wait=True)
        assert isinstance(event, Finished) and event.error.kind == "missing"
