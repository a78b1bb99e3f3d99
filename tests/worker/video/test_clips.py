"""All clips of a video, their times, and that a seek changes nothing."""

import numpy as np
import pytest

from cosmos_hpc.worker.video.clips import Cut, VideoError, read_clips
from tests.worker import make_videos

GOPS = {
    "closed.mp4": ("libx264", {"x264-params": "keyint=30:min-keyint=30:scenecut=0:bframes=3"}),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=30:scenecut=0:bframes=3"}),
    "open.mkv": ("libx264", {"x264-params": "open-gop=1:keyint=30:scenecut=0:bframes=3"}),
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=30:bframes=0:scenecut=0"}),
    "mpeg2.mkv": ("mpeg2video", {"bf": "2", "g": "15"}),
    "mpeg4.mp4": ("mpeg4", {"g": "12"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=30:open-gop=1:log-level=none"}),
    "vp9.webm": ("libvpx-vp9", {"g": "30", "lag-in-frames": "8"}),
}
#: Decoded from the beginning: AVI has no times of its own, a refreshed stream no key frames.
NO_SEEK = {"mpeg4.avi", "refresh.mp4"}


def clips(path, begin=0, mark=None, **cut):
    wanted = Cut(**{"frames": 9, "height": 48, "width": 80, "every": True, **cut})
    return list(read_clips(path, wanted, begin, mark))


def all_frames(path, count):
    return clips(path, frames=count)[0].pixels


def decoded(path, begin=0, mark=None, **cut):
    """Frames that were decoded for the first clip."""
    count = []
    wanted = Cut(**{"frames": 9, "height": 48, "width": 80, "every": True, **cut})
    next(read_clips(path, wanted, begin, mark, tick=lambda: count.append(1)))
    return len(count)


@pytest.fixture(scope="module")
def gop_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gops")


@pytest.fixture(scope="module", params=GOPS)
def gop(request, gop_folder):
    """A video of 150 frames whose groups of pictures are of one kind."""
    codec, options = GOPS[request.param]
    path = gop_folder / request.param
    return make_videos.write(path, make_videos.noisy(150), codec, encoder=options)


def test_clips_follow_each_other_and_the_remainder_is_left_out(tmp_path):
    path = make_videos.write(tmp_path / "v.mp4", make_videos.noisy(40))
    found, whole = clips(path), all_frames(path, 40)
    assert [clip.number for clip in found] == [0, 1, 2, 3]
    for clip in found:
        begin = clip.number * 9
        assert np.array_equal(clip.pixels, whole[:, begin : begin + 9])
        assert clip.time == pytest.approx(begin / 30, abs=1e-5)
        assert clip.seconds == pytest.approx(0.3, abs=1e-5)
        assert clip.padded == 0


@pytest.mark.parametrize("stride", [1, 4, 9, 13])
def test_stride_is_counted_in_frames_and_overlaps_or_leaves_gaps(tmp_path, stride):
    path = make_videos.write(tmp_path / "v.mp4", make_videos.noisy(40))
    found, whole = clips(path, stride=stride), all_frames(path, 40)
    assert len(found) == 1 + (40 - 9) // stride
    for clip in found:
        begin = clip.number * stride
        assert np.array_equal(clip.pixels, whole[:, begin : begin + 9])
        assert clip.time == pytest.approx(begin / 30, abs=1e-5)


def test_only_a_video_without_a_whole_clip_is_padded(tmp_path):
    path = make_videos.write(tmp_path / "v.mp4", make_videos.noisy(5))
    (clip,) = clips(path)
    assert (clip.padded, clip.seconds) == (4, pytest.approx(5 / 30, abs=1e-5))
    assert (clip.pixels[:, 4:] == clip.pixels[:, 4:5]).all()


def test_resuming_after_any_clip_gives_the_same_clips(gop):
    for cut in ({}, {"stride": 20}, {"stride": 5, "frames": 17}, {"frame_rate": 20.0}):
        found = clips(gop, **cut)
        assert len(found) > 5
        for before in found[2:-1:3]:
            rest = clips(gop, before.number + 1, before.mark, **cut)
            assert [(c.number, c.time) for c in rest] == [
                (c.number, c.time) for c in found[before.number + 1 :]
            ]
            for one, other in zip(rest, found[before.number + 1 :], strict=True):
                assert np.array_equal(one.pixels, other.pixels)


def test_a_late_start_gives_the_frames_that_are_shown_then(gop):
    whole = all_frames(gop, 150)
    for start in (0.5, 2.5, 3.02, 4.2):
        clip = clips(gop, start=start, every=False)[0]
        # AVI's first frame of a reordered stream is not at time 0; its clock begins with it.
        begin = int(start * 30 + 1e-6)
        assert np.array_equal(clip.pixels, whole[:, begin : begin + 9])
        assert clip.time == pytest.approx(begin / 30, abs=2e-3)


def test_a_late_clip_is_reached_by_seeking_where_that_is_exact(gop):
    mark = clips(gop)[13].mark
    ways = (decoded(gop, start=4.2), decoded(gop, 14, mark), decoded(gop, 4, frame_rate=9.0))
    if gop.name in NO_SEEK:
        assert min(ways) > 125
    else:
        assert max(ways) < 60


def test_real_videos_go_on_after_any_clip(driving):
    path = sorted(driving.glob("*.mp4"))[0]
    found = clips(path)
    assert len(found) == 6
    rest = clips(path, 3, found[2].mark)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(rest, found[3:], strict=True))


def test_resampling_takes_the_frame_that_is_shown_at_each_moment(tmp_path):
    path = make_videos.write(tmp_path / "v.mp4", make_videos.noisy(60))
    whole = all_frames(path, 60)
    for rate, of_a_frame in ((10.0, 3), (15.0, 2), (60.0, 0.5), (24.0, 30 / 24)):
        for clip in clips(path, frame_rate=rate):
            shown = [int((clip.number * 9 + i) * of_a_frame + 1e-6) for i in range(9)]
            assert np.array_equal(clip.pixels, whole[:, shown])
            assert clip.time == pytest.approx(clip.number * 9 / rate, abs=1e-5)
            assert clip.seconds == pytest.approx(9 / rate, abs=1e-5)


def test_the_same_rate_changes_nothing_though_matroska_rounds_times(tmp_path):
    path = make_videos.write(tmp_path / "v.mkv", make_videos.noisy(40))
    assert [
        np.array_equal(a.pixels, b.pixels)
        for a, b in zip(clips(path), clips(path, frame_rate=30.0), strict=True)
    ] == [True] * 4


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_a_variable_frame_rate(tmp_path, name):
    times = [0, 100, 110, 120, 400, 500, 510, 900, 1000, 1010, 1020, 1100]
    path = make_videos.write_timed(tmp_path / name, make_videos.noisy(12), times)
    whole = all_frames(path, 12)
    own = clips(path, every=False)[0]
    assert np.array_equal(own.pixels, whole[:, :9])
    clip = clips(path, every=False, frame_rate=10.0)[0]
    shown = [max(i for i, t in enumerate(times) if t <= 100 * k) for k in range(9)]
    assert np.array_equal(clip.pixels, whole[:, shown])


def test_a_start_behind_the_end_says_so(tmp_path):
    path = make_videos.write(tmp_path / "v.mp4", make_videos.noisy(60))
    for rate in (None, 10.0):
        with pytest.raises(VideoError, match=r"it ends at 2 s, before data.start=5") as e:
            clips(path, start=5.0, frame_rate=rate)
        assert e.value.kind == "short"
    assert clips(path, start=1.95)[0].padded == 7


def test_damage_keeps_the_clips_before_it(tmp_path):
    options = {"movflags": "+faststart"}
    path = make_videos.write(tmp_path / "v.mp4", make_videos.noisy(150, 96, 160), options=options)
    before = clips(path)
    make_videos.truncate(path, 0.6)
    kept = []
    with pytest.raises(VideoError, match=r"truncated or damaged: .* clips are kept") as e:
        for clip in read_clips(path, Cut(9, 48, 80, every=True)):
            kept.append(clip)
    assert e.value.kind == "truncated"
    assert 3 < len(kept) < len(before)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(kept, before, strict=False))
