"""Which of the streams of a file is its video."""

import av
import numpy as np
import pytest
from av.stream import Disposition

from cosmos_hpc.worker.video.clips import Cut, VideoError, read_clip, read_clips
from cosmos_hpc.worker.video.probe import declared_frames
from tests.conftest import REPOSITORY
from tests.worker import make_videos

GIVEN = REPOSITORY.parent / "shared" / "cases"
NONE, DEFAULT = Disposition(0), Disposition.default
FILM = make_videos.noisy(20)
COVER = np.full((1, 160, 160, 3), 200, np.uint8)
PREVIEW = make_videos.frames(20, 16, 32)
STILL = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}


def is_film(clip):
    return abs(np.moveaxis(clip.pixels, 0, -1).astype(int) - FILM[:9]).mean() < 12


#: Streams of a file, and which of them is the film.
FILES = {
    "cover.mp4": ([(COVER, {**STILL, "disposition": Disposition.attached_pic}), (FILM, {})], True),
    "default.mp4": ([(PREVIEW, {}), (FILM, {"disposition": DEFAULT})], True),
    "default.mkv": ([(PREVIEW, {}), (FILM, {"disposition": DEFAULT})], True),
    "still.mkv": ([(COVER, STILL), (FILM, {})], True),
    "still.mp4": (
        [(COVER, {**STILL, "disposition": NONE}), (FILM, {"disposition": DEFAULT})],
        True,
    ),
    "first.mp4": ([(FILM, {"disposition": DEFAULT}), (PREVIEW, {})], True),
    "other.mkv": ([(FILM, {}), (PREVIEW, {"disposition": DEFAULT})], False),
}


@pytest.mark.parametrize("name", FILES)
def test_the_stream_that_ffmpeg_calls_best(tmp_path, name):
    streams, film = FILES[name]
    path = make_videos.write_streams(tmp_path / name, *streams)
    clip = read_clip(path, 9, 48, 80)
    assert clip.padded == 0
    assert is_film(clip) == film
    with av.open(str(path)) as container:
        best = container.streams.best("video")
        assert len(container.streams.video) == 2
        assert clip.notes == {"stream": best.index}
    assert list(declared_frames([str(path)])) == [20]


def put_cover_first(path):
    """Have FFmpeg meet the cover before the tracks: ``udta`` at the beginning of ``moov``."""
    content = path.read_bytes()
    moov = content.index(b"moov")
    udta = content.index(b"udta", moov) - 4
    length = int.from_bytes(content[udta : udta + 4], "big")
    box = content[udta : udta + length]
    rest = content[:udta] + content[udta + length :]
    header = rest.index(b"mvhd", moov) - 4
    path.write_bytes(rest[:header] + box + rest[header:])
    return path


def test_a_cover_is_never_the_video(tmp_path):
    cover = (COVER, {**STILL, "disposition": Disposition.attached_pic})
    path = make_videos.write_streams(tmp_path / "v.mp4", cover, (FILM, {"disposition": NONE}))
    put_cover_first(path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    clip = read_clip(path, 9, 48, 80)
    assert is_film(clip)
    assert clip.notes == {"stream": 1}
    assert list(declared_frames([str(path)])) == [20]


def test_sound_with_a_cover_is_no_video(tmp_path):
    cover = (COVER, {**STILL, "disposition": Disposition.attached_pic})
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        still = container.add_stream("mjpeg", rate=30)
        still.height, still.width, still.pix_fmt = 160, 160, "yuvj420p"
        still.disposition = Disposition.attached_pic
        samples = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
        container.mux(still.encode(av.VideoFrame.from_ndarray(cover[0][0], format="rgb24")))
        container.mux(still.encode())
    with pytest.raises(VideoError, match="no video stream, only a cover picture") as e:
        read_clip(path, 9, 48, 80)
    assert e.value.kind == "unreadable"
    assert list(declared_frames([str(path)])) == [0]


@pytest.mark.parametrize(("name", "codec"), [("v.mxf", "mpeg2video"), ("v.gif", "gif")])
def test_containers_that_are_not_read_are_named_as_such(tmp_path, name, codec):
    pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
    path = make_videos.write(tmp_path / name, make_videos.frames(9), codec, pix_fmt)
    with pytest.raises(VideoError, match="none of those that are read; convert it to MP4") as e:
        read_clip(path, 9, 48, 80)
    assert e.value.kind == "unreadable"


def test_the_best_stream_goes_on_after_any_clip(tmp_path):
    path = make_videos.write_streams(
        tmp_path / "v.mp4",
        (make_videos.frames(100, 16, 32), {}),
        (make_videos.noisy(100), {"disposition": DEFAULT}),
    )
    cut = Cut(9, 48, 80, every=True)
    found = list(read_clips(path, cut))
    assert len(found) == 11
    for before in found[6:10]:
        rest = list(read_clips(path, cut, before.number + 1, before.mark))
        for one, other in zip(rest, found[before.number + 1 :], strict=True):
            assert np.array_equal(one.pixels, other.pixels)


@pytest.mark.skipif(not GIVEN.is_dir(), reason="no such files beside the checkout")
@pytest.mark.parametrize("name", ["cover_first.mkv", "two.mp4"])
def test_given_videos(name):
    folder = GIVEN / "first-stream-instead-of-best"
    film = read_clip(folder / "plain.mp4", 9, 96, 160)
    clip = read_clip(folder / name, 9, 96, 160)
    assert np.array_equal(clip.pixels, film.pixels)
    assert (clip.padded, clip.notes) == (0, {"stream": 1})
