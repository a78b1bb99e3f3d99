"""Where a video ends: headers may say anything, what is missing counts."""

import contextlib

import av
import numpy as np
import pytest

from cosmos_hpc.worker.video.clips import Cut, VideoError, read_clips
from tests.conftest import REPOSITORY
from tests.worker import make_videos

GIVEN = REPOSITORY.parent / "shared" / "cases"
#: Groups of 30 pictures with B frames.
GROUPS = {"x264-params": "keyint=30:bframes=3:scenecut=0"}
#: Ticks of a frame in an MP4 file of 30 frames per second, and those by which B frames delay it.
TICKS, DELAY = 512, 1024
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
CUT = {"frames": 9, "height": 48, "width": 80, "every": True}


def clips(path, begin=0, mark=None, **cut):
    return list(read_clips(path, Cut(**{**CUT, **cut}), begin, mark))


def edited(folder, *edits, count=100):
    """A video with an edit list: milliseconds, and the frame at which each part begins."""
    path = make_videos.write(folder / "v.mp4", make_videos.noisy(count), encoder=GROUPS)
    ticks = [(long, DELAY + TICKS * first if first >= 0 else -1) for long, first in edits]
    return make_videos.set_edits(path, ticks)


def late(folder, name, by=100_000, **how):
    times = [by + round(i * 1000 / 30) for i in range(100)]
    return make_videos.write_timed(folder / name, make_videos.noisy(100), times, **how)


def fragment(folder, first, last, **how):
    """The head of a fragmented film, and some of its fragments."""
    path = make_videos.write(folder / "v.mp4", make_videos.noisy(150), encoder=GROUPS, **how)
    parts = make_videos.boxes(path)
    head = [content for name, content in parts if name in ("ftyp", "moov", "sidx")]
    rest = [content for name, content in parts if name in ("moof", "mdat")]
    path.write_bytes(b"".join(head + rest[2 * first : 2 * last]))
    return path


def held(folder, name, **how):
    """Thirty frames, the last of which stays for five seconds."""
    times = [40 * i for i in range(30)]
    pictures = make_videos.noisy(30)
    plain = {"encoder": {"bf": "0", **how.pop("encoder", {})}}
    return make_videos.write_timed(folder / name, pictures, times, hold=5000, **plain, **how)


def behind_a_key_frame(folder, name, codec, **encoder):
    """A recording that begins within a group of pictures: frames from the next one on."""
    encoder = {"g": "20", "bf": "0", **encoder}
    path = make_videos.write(folder / "v.mkv", make_videos.noisy(50), codec, encoder=encoder)
    return make_videos.copy(path, folder / name, skip=5)


def followed(folder, name, content):
    return make_videos.append(make_videos.write(folder / name, make_videos.noisy(50)), content)


REALTIME = {"deadline": "realtime", "cpu-used": "8"}
ZEROS, OTHER = bytes(100_000), bytes(range(1, 200)) * 500


#: Sound videos: how one is made, its frames, and its seconds.
SOUND = {
    "trimmed at the head": (lambda f: edited(f, (1500, 20)), 45, 1.5),
    "trimmed far": (lambda f: edited(f, (300, 85)), 9, 0.3),
    "trimmed at the end": (lambda f: edited(f, (1500, 0)), 45, 1.5),
    "begins late": (lambda f: edited(f, (2000, -1), (3333, 0)), 100, 10 / 3),
    "two parts": (lambda f: edited(f, (1000, 0), (1000, 65)), 60, None),
    "late, mkv": (lambda f: late(f, "v.mkv"), 100, 10 / 3),
    "late, mp4": (lambda f: late(f, "v.mp4"), 100, 10 / 3),
    "late, ts": (lambda f: late(f, "v.ts"), 100, 10 / 3),
    "late, flv": (lambda f: late(f, "v.flv"), 100, 10 / 3),
    "late, webm": (
        lambda f: late(f, "v.webm", codec="libvpx-vp9", encoder={"deadline": "realtime"}),
        100,
        10 / 3,
    ),
    "before 0, mp4": (
        lambda f: late(f, "v.mp4", by=-500, options={"avoid_negative_ts": "disabled"}),
        None,
        None,
    ),
    "late fragments": (lambda f: fragment(f, 2, 5, options=FRAGMENTS), 90, 3.0),
    "one fragment": (lambda f: fragment(f, 3, 4, options=FRAGMENTS), 30, 1.0),
    "a part of what its index lists": (
        lambda f: fragment(f, 0, 2, options={"movflags": "dash+delay_moov+global_sidx"}),
        60,
        2.0,
    ),
    "late moov of fragments": (
        lambda f: late(f, "v.mp4", options={"movflags": "frag_keyframe+delay_moov"}),
        100,
        10 / 3,
    ),
    "live": (
        lambda f: make_videos.write(f / "v.mkv", make_videos.noisy(50), options={"live": "1"}),
        50,
        5 / 3,
    ),
    "held, mp4": (lambda f: held(f, "v.mp4"), 30, 6.16),
    "held, mov": (lambda f: held(f, "v.mov"), 30, 6.16),
    "held, mkv": (lambda f: held(f, "v.mkv"), 30, 6.16),
    "held, webm": (
        lambda f: held(f, "v.webm", codec="libvpx-vp9", encoder={"lag-in-frames": "0"}),
        30,
        6.16,
    ),
    "behind a key frame": (
        lambda f: behind_a_key_frame(f, "behind.mkv", "libx264", sc_threshold="0"),
        30,
        None,
    ),
    "behind a key frame, vp8": (
        lambda f: behind_a_key_frame(f, "behind.webm", "libvpx", **REALTIME),
        30,
        None,
    ),
    "behind a key frame, vp9": (
        lambda f: behind_a_key_frame(f, "behind.webm", "libvpx-vp9", **REALTIME),
        30,
        None,
    ),
    "zeros behind, ts": (lambda f: followed(f, "v.ts", ZEROS), 50, 5 / 3),
    "more behind, mkv": (lambda f: followed(f, "v.mkv", OTHER), 50, 5 / 3),
    "more behind, flv": (lambda f: followed(f, "v.flv", OTHER), 50, 5 / 3),
}


@pytest.fixture(scope="module", params=SOUND)
def sound(request, tmp_path_factory):
    make, count, seconds = SOUND[request.param]
    return make(tmp_path_factory.mktemp("sound")), count, seconds


def frames_of_ffmpeg(path):
    """As its command line counts them: it goes on after what it cannot read or decode."""
    frames = 0
    with av.open(str(path)) as container:
        while True:
            try:
                for packet in container.demux(video=0):
                    with contextlib.suppress(av.error.InvalidDataError):
                        frames += len(packet.decode())
                return frames
            except av.error.BlockingIOError:
                continue


def test_a_sound_video_gives_all_its_frames_whatever_its_header_says(sound):
    path, count, _ = sound
    frames = frames_of_ffmpeg(path)
    assert count in (frames, None)
    found = clips(path, frames=1)
    assert len(found) == frames
    assert found[0].time == (0.5 if path.stem == "behind" else 0)
    times = [clip.time for clip in found]
    assert times == sorted(times)
    # Longer than the video, a clip is filled up and no error.
    (padded,) = clips(path, frames=frames + 5, every=False)
    assert padded.padded == 5
    assert all(np.array_equal(padded.pixels[:, i], found[i].pixels[:, 0]) for i in range(frames))


def test_the_last_frame_is_as_long_as_it_says(sound):
    path, count, seconds = sound
    if seconds is None:
        pytest.skip("FFmpeg decides what is shown, and when")
    (whole,) = clips(path, frames=count, every=False)
    assert whole.seconds == pytest.approx(seconds, abs=0.002)
    assert len(clips(path, frames=1, frame_rate=10.0)) == pytest.approx(seconds * 10, abs=1)


def test_a_sound_video_goes_on_after_any_clip(sound):
    path = sound[0]
    for cut in ({"frames": 5}, {"frames": 3, "frame_rate": 12.0}):
        found = clips(path, **cut)
        assert found
        for before in found[:-1:2]:
            rest = clips(path, before.number + 1, before.mark, **cut)
            assert [clip.time for clip in rest] == [
                clip.time for clip in found[before.number + 1 :]
            ]
            for one, other in zip(rest, found[before.number + 1 :], strict=True):
                assert np.array_equal(one.pixels, other.pixels)


def test_only_the_frames_that_an_edit_list_shows(tmp_path):
    path = make_videos.write(tmp_path / "v.mp4", make_videos.noisy(100), encoder=GROUPS)
    whole = clips(path)
    (shown,) = clips(make_videos.set_edits(path, [(300, DELAY + TICKS * 27)]))
    assert np.array_equal(shown.pixels, whole[3].pixels)


def test_a_frame_that_stays_for_hours_makes_no_endless_video(tmp_path):
    path = make_videos.write_timed(
        tmp_path / "v.mp4",
        make_videos.noisy(9),
        [40 * i for i in range(9)],
        hold=10_000_000,
        encoder={"bf": "0"},
    )
    assert len(clips(path)) == 1
    with pytest.raises(VideoError, match="hours away"):
        clips(path, frame_rate=10.0)


WHOLE = {
    "v.mp4": ("libx264", {"options": {"movflags": "+faststart"}, "encoder": GROUPS}),
    "fragments.mp4": ("libx264", {"options": FRAGMENTS, "encoder": GROUPS}),
    "hevc.mp4": (
        "libx265",
        {"options": {"movflags": "+faststart"}, "encoder": {"x265-params": "log-level=none"}},
    ),
    "mpeg2.mp4": ("mpeg2video", {"options": {"movflags": "+faststart"}, "encoder": {"bf": "2"}}),
    "v.mkv": ("libx264", {"encoder": GROUPS}),
    "live.mkv": ("libx264", {"options": {"live": "1"}, "encoder": GROUPS}),
    "v.webm": ("libvpx-vp9", {"encoder": {"deadline": "realtime", "cpu-used": "8"}}),
    "mpeg4.avi": ("mpeg4", {"encoder": {"bf": "2"}}),
    "mjpeg.avi": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "v.ts": ("libx264", {"encoder": GROUPS}),
    "v.flv": ("libx264", {"encoder": GROUPS}),
    "v.ogv": ("libvpx", {"encoder": REALTIME}),
    "v.wmv": ("wmv2", {}),
}


@pytest.fixture(scope="module", params=WHOLE)
def whole(request, tmp_path_factory):
    codec, how = WHOLE[request.param]
    path = tmp_path_factory.mktemp("whole") / request.param
    return make_videos.write(path, make_videos.noisy(90, 96, 160), codec, **how)


def damaged(path, target, how):
    """Cut a video, between two packets or within one of a number, or blank its end."""
    content = path.read_bytes()
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos]
    if how == "between packets":
        content = content[: places[60]]
    elif how == "blank":
        content = content[: places[70] + 9].ljust(len(content), b"\0")
    else:
        content = content[: places[how] + 20]
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("how", [45, 71, "between packets", "blank"])
def test_a_video_that_is_cut_or_damaged_is_found(whole, tmp_path, how):
    if whole.name in ("v.ts", "v.flv", "v.ogv", "live.mkv") and isinstance(how, str):
        pytest.skip("nothing in such a file says that there should be more")
    if whole.name == "v.wmv" and how == "blank":
        pytest.skip("packets of ASF may be empty")
    path = damaged(whole, tmp_path / whole.name, how)
    before = clips(whole)
    assert len(before) == 10
    kept = []
    with pytest.raises(VideoError, match="truncated or damaged: .* decode") as e:
        for clip in read_clips(path, Cut(**CUT)):
            kept.append(clip)
    assert e.value.kind == "truncated"
    assert len(kept) < 10
    # Frames before the damage without a gap, and no others.
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(kept, before, strict=False))


def test_where_ffmpeg_stops_for_the_sake_of_another_stream(tmp_path):
    """It reads packets by their times, and those of the other stream are behind the cut."""
    film, other = (make_videos.noisy(90), {}), (make_videos.noisy(90), {})
    path = make_videos.write_streams(tmp_path / "v.mp4", film, other, options=FRAGMENTS)
    assert len(clips(path)) == 10
    with av.open(str(path)) as container:
        places = [(packet.stream_index, packet.pos) for packet in container.demux() if packet.size]
    end = max(place for stream, place in places if stream == 0)
    cut = min(place for _, place in places if place > end) + 20
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(VideoError, match="before frames that should follow") as e:
        clips(path)
    assert e.value.kind == "truncated"


def test_only_tables_behind_the_packets_are_lost(tmp_path):
    path = make_videos.write(tmp_path / "v.mkv", make_videos.noisy(40))
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(bytes.fromhex("1c53bb6b")) + 20])
    assert len(clips(path)) == 4


@pytest.mark.skipif(not GIVEN.is_dir(), reason="no such files beside the checkout")
@pytest.mark.parametrize(
    ("name", "count", "resampled"),
    [
        ("cam1.mkv", 50, 20),
        ("hold.mp4", 30, 80),
        ("trim_head.mp4", 52, 22),
        ("trim_short.mp4", 12, 6),
    ],
)
def test_given_videos_are_sound(name, count, resampled):
    path = GIVEN / "sound-videos-called-truncated" / name
    assert len(clips(path, frames=1)) == count
    assert len(clips(path, frames=1, frame_rate=10.0)) == resampled
    assert clips(path, frames=60, every=False)[0].padded == 60 - count
