"""Preprocess and finalize on real files: what fails is listed, ids never depend on the way."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from av.stream import Disposition
from megatron.core.datasets.indexed_dataset import IndexedDataset

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import Stopped, WorkError
from cosmos_hpc.planning.plans import make_plan
from cosmos_hpc.runs.create import open_run
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.in_flight import clear_in_flight
from cosmos_hpc.runs.stages import marker_path, missing_tasks, stages_of, task_command, write_specs
from cosmos_hpc.utils import files
from cosmos_hpc.worker.stages.download import download
from cosmos_hpc.worker.stages.finalize import finalize
from cosmos_hpc.worker.stages.preprocess import preprocess
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.clips import Cut, read_clip, read_clips
from tests.conftest import REPOSITORY, list_videos
from tests.worker import make_videos

SMALL = ("data.frames=9", "data.height=48", "data.width=80")


def planned(path, videos, *overrides, shards=2):
    """A run folder with a pinned plan and a tokenizer."""
    recipe = load_recipe("ar_tiny", [f"data.input={videos}", *SMALL, *overrides])
    cluster = load_cluster()
    run = RunFolder(path)
    found = list_videos(str(videos))
    open_run(run, recipe, cluster, make_plan(recipe, cluster, len(found)))
    run.data.pin(str(videos), found, shards)
    write_specs(run, recipe)
    download(run, recipe)
    return run, recipe


def prepared(path, videos, *overrides, shards=2):
    run, recipe = planned(path, videos, *overrides, shards=shards)
    for shard in range(shards):
        preprocess(run, recipe, shard)
    finalize(run, recipe)
    return run


def test_a_shard_that_is_made_anew_is_joined_anew(tmp_path, long_videos):
    run = prepared(tmp_path / "run", long_videos)
    recipe, before = run.recipe(), content(run)
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "finalize"]
    assert missing_tasks(run, recipe, stage) == []
    shutil.rmtree(run.tokens.shard(1))
    # Before the shard is there as well: the stage is to be submitted with it.
    assert missing_tasks(run, recipe, stage) == [0]
    preprocess(run, recipe, 1)
    assert missing_tasks(run, recipe, stage) == [0]
    finalize(run, recipe)
    assert missing_tasks(run, recipe, stage) == []
    assert content(run) == before


def content(run):
    return [
        (run.tokens.path / name).read_bytes()
        for name in ("tokens.bin", "tokens.idx", "clips.jsonl")
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, scenes):
    """The scenes prepared in one shard."""
    return prepared(tmp_path_factory.mktemp("runs") / "reference", scenes, shards=1)


def test_one_document_a_video_with_the_ids_of_the_tokenizer(reference, scenes):
    dataset = IndexedDataset(str(reference.tokens.prefix))
    clips = files.read_jsonl(reference.tokens.clips)
    assert len(dataset) == len(clips) == 8
    assert len(dataset.document_indices) == 9
    tokenizer = VideoTokenizer(reference.tokenizer, (2, 3, 5))
    for document, row in enumerate(clips):
        assert row["document"] == document
        pixels = read_clip(scenes / row["video"], 9, 48, 80).pixels
        assert np.array_equal(dataset[document], tokenizer.encode(pixels[None]).flatten())
    assert dataset[0].dtype == np.uint16


@pytest.mark.parametrize(("shards", "batch"), [(2, 1), (3, 3), (8, 8)])
def test_ids_do_not_depend_on_shards_or_batches(tmp_path, reference, scenes, shards, batch):
    run = prepared(tmp_path / "run", scenes, f"data.batch_size={batch}", shards=shards)
    assert content(run) == content(reference)


def test_ids_of_real_videos_do_not_depend_on_shards_or_batches(tmp_path, driving):
    ways = [("data.batch_size=1", 1), ("data.batch_size=3", 3)]
    runs = [prepared(tmp_path / f"{n}", driving, o, shards=n) for o, n in ways]
    assert content(runs[0]) == content(runs[1])


def test_a_killed_worker_goes_on_and_changes_nothing(tmp_path, reference, scenes):
    run, recipe = planned(tmp_path / "run", scenes, "data.batch_size=1", shards=1)
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "preprocess"]
    moments = 0
    for lines in range(1, 7, 2):
        worker = subprocess.Popen(
            task_command(run, stage), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while worker.poll() is None and len(files.read_jsonl(run.tokens.journal(0))) < lines:
            time.sleep(0.002)
        moments += worker.poll() is None
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        # As a submit does that stops its workers: no video is to blame.
        clear_in_flight(run.tokens.in_flight(0))
    assert moments >= 1
    journal = files.read_jsonl(run.tokens.journal(0))
    before = run.tokens.journal(0).with_suffix(".ids").stat().st_size
    assert journal or marker_path(run, "preprocess", 0).exists()
    preprocess(run, recipe, 0)
    finalize(run, recipe)
    assert content(run) == content(reference)
    assert before  # finished clips were there to be kept


def test_a_whole_shard_is_not_done_again(tmp_path, scenes):
    run, recipe = planned(tmp_path / "run", scenes)
    preprocess(run, recipe, 0)
    inode = run.tokens.shard(0).stat().st_ino
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "preprocess"]
    again = subprocess.run(task_command(run, stage), capture_output=True, text=True)
    assert again.returncode == 0
    assert "preprocess task 0 is done already" in again.stdout
    assert run.tokens.shard(0).stat().st_ino == inode


def test_two_workers_on_one_shard_wait_for_each_other(tmp_path, reference, scenes):
    run, recipe = planned(tmp_path / "run", scenes, "data.batch_size=1", shards=1)
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "preprocess"]
    workers = [
        subprocess.Popen(task_command(run, stage), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [worker.communicate(timeout=280)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sum("shard 0 is complete: 8 clips" in text for text in said) == 1
    finalize(run, recipe)
    assert content(run) == content(reference)


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory):
    """Three videos of 2, 11 and 4 clips and a rest."""
    folder = tmp_path_factory.mktemp("long")
    pictures = make_videos.noisy(100)
    for i, count in enumerate((20, 100, 40)):
        make_videos.write(folder / f"{i}.mp4", pictures[:count])
    return folder


@pytest.fixture(scope="module")
def all_clips(tmp_path_factory, long_videos):
    """All clips of the long videos, prepared in one undisturbed process."""
    path = tmp_path_factory.mktemp("runs") / "all"
    return prepared(path, long_videos, "data.clips=all", "data.decoders=0", shards=1)


def test_all_clips_of_a_video_are_documents_that_know_their_place(all_clips, long_videos):
    dataset = IndexedDataset(str(all_clips.tokens.prefix))
    rows = files.read_jsonl(all_clips.tokens.clips)
    assert [(row["index"], row["clip"]) for row in rows] == [
        (index, clip) for index, clips in enumerate((2, 11, 4)) for clip in range(clips)
    ]
    tokenizer = VideoTokenizer(all_clips.tokenizer, (2, 3, 5))
    for row in rows:
        assert row["document"] == rows.index(row)
        assert row["time"] == pytest.approx(row["clip"] * 9 / 30, abs=1e-4)
        clip = list(read_clips(long_videos / row["video"], Cut(9, 48, 80, every=True)))[row["clip"]]
        ids = tokenizer.encode(clip.pixels[None]).flatten()
        assert np.array_equal(dataset[row["document"]], ids)


@pytest.mark.parametrize(("decoders", "shards", "batch"), [(1, 2, 1), (3, 1, 5), (2, 3, 2)])
def test_ids_do_not_depend_on_decoders(tmp_path, all_clips, long_videos, decoders, shards, batch):
    overrides = ["data.clips=all", f"data.decoders={decoders}", f"data.batch_size={batch}"]
    run = prepared(tmp_path / "run", long_videos, *overrides, shards=shards)
    assert content(run) == content(all_clips)


@pytest.mark.parametrize("decoders", [0, 2])
def test_a_stop_keeps_finished_clips_also_within_a_video(
    tmp_path, all_clips, long_videos, decoders, monkeypatch
):
    # Only when clips are written, not while the first one is waited for.
    monkeypatch.setattr("cosmos_hpc.worker.datasets.shard._LOOK_EVERY", 60)
    overrides = ["data.clips=all", "data.batch_size=2", f"data.decoders={decoders}"]
    run, recipe = planned(tmp_path / "run", long_videos, *overrides, shards=1)
    run.stop_request.touch()
    within = 0
    for attempt in range(1, 20):
        with contextlib.suppress(Stopped):
            preprocess(run, recipe, 0)
            break
        rows = files.read_jsonl(run.tokens.journal(0))
        assert len(rows) >= 2 * attempt
        within += not rows[-1].get("last")
    assert attempt > 5 and within > 2
    finalize(run, recipe)
    assert content(run) == content(all_clips)


def killed(run, stage, rows, **environment):
    """Kill a worker once its journal has so many rows; whether it came to that."""
    worker = subprocess.Popen(
        task_command(run, stage),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    while worker.poll() is None and len(files.read_jsonl(run.tokens.journal(0))) < rows:
        time.sleep(0.002)
    alive = worker.poll() is None
    worker.kill()
    worker.wait()
    return alive


@pytest.mark.slow
def test_a_worker_killed_within_a_long_video_goes_on_there(tmp_path, all_clips, long_videos):
    overrides = ["data.clips=all", "data.batch_size=1", "data.decoders=2"]
    run, recipe = planned(tmp_path / "run", long_videos, *overrides, shards=1)
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "preprocess"]
    moments = sum(killed(run, stage, rows) for rows in (3, 8))
    assert moments >= 1
    preprocess(run, recipe, 0)
    finalize(run, recipe)
    assert content(run) == content(all_clips)
    assert not list(run.tokens.journal(0).parent.iterdir())


@pytest.mark.slow
def test_a_video_that_kills_the_worker_itself_is_listed_at_the_third_try(tmp_path, long_videos):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "kills.mp4", "z.mp4"):
        shutil.copy(long_videos / "0.mp4", folder / name)
    run, recipe = planned(tmp_path / "run", folder, "data.decoders=0", shards=1)
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "preprocess"]
    # run_task.py comes first on the path, so that what it finds there is the run's snapshot.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "hostile_site")}
    codes = [
        subprocess.run(task_command(run, stage), env=environment, capture_output=True).returncode
        for _ in range(3)
    ]
    assert codes == [-signal.SIGSEGV, -signal.SIGSEGV, 0]
    finalize(run, recipe)
    (failed,) = files.read_jsonl(run.tokens.failed)
    assert (failed["video"], failed["kind"]) == ("kills.mp4", "killed_worker")
    assert failed["reason"].startswith("2 workers died")
    assert [row["video"] for row in files.read_jsonl(run.tokens.clips)] == ["a.mp4", "z.mp4"]


def test_a_video_damaged_late_keeps_its_clips_and_is_listed(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    options = {"movflags": "+faststart"}
    path = make_videos.write(folder / "v.mp4", make_videos.noisy(150, 96, 160), options=options)
    make_videos.truncate(path, 0.6)
    make_videos.write(folder / "w.mp4", make_videos.noisy(10))
    run = prepared(tmp_path / "run", folder, "data.clips=all", shards=1)
    (failed,) = files.read_jsonl(run.tokens.failed)
    kept = [row for row in files.read_jsonl(run.tokens.clips) if row["video"] == "v.mp4"]
    assert failed["kind"] == "truncated"
    assert len(kept) == failed["clips"] > 3


def test_a_table_says_what_was_done_to_each_clip(tmp_path):
    videos, made = tmp_path / "videos", make_videos.noisy(20)
    videos.mkdir()
    make_videos.write(videos / "0-plain.mp4", made)
    make_videos.set_matrix(make_videos.write(videos / "1-mirrored.mp4", made), -1, 0, 0, 1)
    make_videos.set_matrix(make_videos.write(videos / "2-both.mp4", made), 0, 1, 1, 0)
    make_videos.write(videos / "3-wide.mp4", made, pixel_aspect=Fraction(4, 3))
    make_videos.write_streams(
        videos / "4-second.mp4",
        (make_videos.frames(20, 16, 32), {}),
        (made, {"disposition": Disposition.default}),
    )
    run = prepared(tmp_path / "run", videos, shards=1)
    usual = {"document", "clip", "index", "video", "time", "seconds", "padded", "rotated"}
    rows = files.read_jsonl(run.tokens.clips)
    assert [row["rotated"] for row in rows] == [0, 0, 90, 0, 0]
    assert [{k: v for k, v in row.items() if k not in usual} for row in rows] == [
        {},
        {"mirrored": True},
        {"mirrored": True},
        {"pixel_aspect": "4:3"},
        {"stream": 1},
    ]


def test_a_journal_of_an_older_version_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("cosmos_hpc.worker.datasets.shard._LOOK_EVERY", 60)
    videos = tmp_path / "videos"
    videos.mkdir()
    make_videos.set_matrix(make_videos.write(videos / "v.mp4", make_videos.noisy(60)), -1, 0, 0, 1)
    overrides = ("data.clips=all", "data.batch_size=2", "data.decoders=0")
    run, recipe = planned(tmp_path / "run", videos, *overrides, shards=1)
    run.stop_request.touch()
    with pytest.raises(Stopped):
        preprocess(run, recipe, 0)
    run.stop_request.unlink()
    journal = run.tokens.journal(0)
    before = [
        {k: v for k, v in row.items() if k != "mirrored"} for row in files.read_jsonl(journal)
    ]
    files.write_jsonl(journal, before)
    preprocess(run, recipe, 0)
    finalize(run, recipe)
    rows = files.read_jsonl(run.tokens.clips)
    assert [row["clip"] for row in rows] == list(range(6))
    assert ["mirrored" in row for row in rows] == [i >= len(before) for i in range(6)]


def test_what_limits_is_said(tmp_path, scenes, capsys):
    run, recipe = planned(tmp_path / "run", scenes, shards=1)
    preprocess(run, recipe, 0)
    assert re.search(
        r"(decoding|the tokenizer) limits: the tokenizer waited \d+% of the time",
        capsys.readouterr().out,
    )


def test_real_videos_give_the_same_ids_in_every_way(tmp_path, driving):
    size = ["data.frames=17", "data.height=96", "data.width=160", "data.clips=all"]
    ways = [
        (["data.decoders=0", "data.batch_size=8"], 1),
        (["data.decoders=1", "data.batch_size=1"], 3),
        (["data.decoders=3", "data.batch_size=4"], 2),
    ]
    runs = []
    for number, (way, shards) in enumerate(ways):
        run, recipe = planned(tmp_path / str(number), driving, *size, *way, shards=shards)
        for shard in range(shards):
            if number == 2:
                run.stop_request.touch()
                with pytest.raises(Stopped):
                    preprocess(run, recipe, shard)
                run.stop_request.unlink()
            preprocess(run, recipe, shard)
        finalize(run, recipe)
        runs.append(run)
    assert len(files.read_jsonl(runs[0].tokens.clips)) == 3 * 8
    assert content(runs[1]) == content(runs[0])
    assert content(runs[2]) == content(runs[0])


def mixed_folder(folder):
    """Five good videos, one of them short, and four bad ones."""
    folder.mkdir()
    pictures = make_videos.frames(12)
    for i in range(4):
        make_videos.write(folder / f"good {i}.mp4", pictures)
    make_videos.write(folder / "short.mp4", pictures[:3])
    make_videos.truncate(make_videos.write(folder / "cut.mp4", pictures), 0.5)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("x" * 1000)
    name = os.path.join(os.fsencode(folder), b"b\xff\n.mp4")
    os.close(os.open(name, os.O_CREAT))
    return folder


def test_broken_videos_are_listed_and_do_not_stop_the_rest(tmp_path, capsys):
    run = prepared(tmp_path / "run", mixed_folder(tmp_path / "videos"))
    failed = files.read_jsonl(run.tokens.failed)
    assert sorted(row["video"] for row in failed if row["video"][0] != "b") == [
        "cut.mp4",
        "empty.mp4",
        "text.mp4",
    ]
    assert all(row["reason"] and row["kind"] == "unreadable" for row in failed)
    clips = files.read_jsonl(run.tokens.clips)
    assert [row["video"] for row in clips if row["padded"]] == ["short.mp4"]
    assert len(clips) == 5
    said = capsys.readouterr().out
    assert "4 of 9 videos failed (4 unreadable); the first is" in said
    assert files.read_json(marker_path(run, "finalize"))["failed"] == {"unreadable": 4}


def test_too_many_failures_fail_the_run_but_leave_the_list(tmp_path):
    run, recipe = planned(
        tmp_path / "run", mixed_folder(tmp_path / "videos"), "data.max_failed_fraction=0.4"
    )
    for shard in range(2):
        preprocess(run, recipe, shard)
    with pytest.raises(WorkError, match=r"4 of 9 .*max_failed_fraction=0.4 does not allow"):
        finalize(run, recipe)
    assert len(files.read_jsonl(run.tokens.failed)) == 4
    assert not marker_path(run, "finalize").exists()
    finalize(run, load_recipe("ar_tiny", [*SMALL, "data.max_failed_fraction=0.45"]))
    assert marker_path(run, "finalize").exists()


def test_an_input_folder_that_is_gone_is_no_fault_of_the_videos(tmp_path, scenes):
    run, recipe = planned(tmp_path / "run", scenes)
    pinned = files.read_json(run.data.shards)
    files.write_json(run.data.shards, {**pinned, "root": str(tmp_path / "unmounted")})
    with pytest.raises(WorkError, match="unmounted is not there; is its file system mounted"):
        preprocess(run, recipe, 0)
    files.write_json(run.data.shards, pinned)
    preprocess(run, recipe, 0)
    assert files.read_json(marker_path(run, "preprocess", 0))["failed"] == 0


def test_short_videos_can_be_refused(tmp_path):
    folder = mixed_folder(tmp_path / "videos")
    allowed = "data.max_failed_fraction=1"
    run = prepared(tmp_path / "run", folder, "data.short_videos=reject", allowed)
    kinds = {row["video"]: row["kind"] for row in files.read_jsonl(run.tokens.failed)}
    assert kinds["short.mp4"] == "short"


def test_the_code_that_runs_is_the_snapshot(tmp_path, scenes):
    run, recipe = planned(tmp_path / "run", scenes)
    module = run.code() / "cosmos_hpc" / "worker" / "stages" / "preprocess.py"
    module.write_text(module.read_text() + "\nprint('this is', __file__)\n")
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "preprocess"]
    for folder in (REPOSITORY, tmp_path):  # a checkout in the working folder does not hide it
        done = subprocess.run(
            task_command(run, stage),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    marker_path(run, "preprocess", 0).unlink()
    done = subprocess.run(task_command(run, stage), cwd=REPOSITORY, capture_output=True, text=True)
    assert f"this is {module}" in done.stdout


def test_no_good_video_at_all(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").touch()
    with pytest.raises(WorkError, match="no video could be prepared"):
        prepared(tmp_path / "run", folder, "data.max_failed_fraction=1", shards=1)


def test_a_damaged_shard_is_found(tmp_path, scenes):
    run, recipe = planned(tmp_path / "run", scenes)
    preprocess(run, recipe, 0)
    with pytest.raises(WorkError, match="shard 00001 is not complete"):
        finalize(run, recipe)
    preprocess(run, recipe, 1)
    with open(run.tokens.shard(1) / "tokens.bin", "r+b") as f:
        f.write(b"\x00\x01")
    with pytest.raises(WorkError, match="tokens.bin is not what its shard's marker says; delete"):
        finalize(run, recipe)


def test_a_video_that_vanishes_meanwhile(tmp_path):
    folder = mixed_folder(tmp_path / "videos")
    run, recipe = planned(tmp_path / "run", folder, "data.max_failed_fraction=1")
    (folder / "good 1.mp4").unlink()
    for shard in range(2):
        preprocess(run, recipe, shard)
    finalize(run, recipe)
    kinds = {row["video"]: row["kind"] for row in files.read_jsonl(run.tokens.failed)}
    assert kinds["good 1.mp4"] == "missing"


def test_a_full_disk_is_one_clear_sentence(small_disk, scenes):
    run, recipe = planned(small_disk / "run", scenes)
    (stage,) = [s for s in stages_of(run, recipe) if s.name == "preprocess"]
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_bsize))
    done = subprocess.run(task_command(run, stage), capture_output=True, text=True)
    assert done.returncode == 1
    assert "the disk is full; free some space and run the same command again" in done.stderr
    (small_disk / "filler").unlink()
    preprocess(run, recipe, 0)
    assert marker_path(run, "preprocess", 0).exists()


def test_a_run_folder_can_be_moved(tmp_path, reference, scenes):
    run, recipe = planned(tmp_path / "run", scenes)
    preprocess(run, recipe, 0)
    moved = RunFolder(Path(str(run.path) + "-moved"))
    run.path.rename(moved.path)
    (stage,) = [s for s in stages_of(moved, recipe) if s.name == "preprocess"]
    subprocess.run(task_command(moved, stage, 1), check=True, capture_output=True)
    finalize(moved, recipe)
    assert content(moved) == content(reference)
    assert sys.executable in task_command(moved, stage)
