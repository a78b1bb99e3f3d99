import os
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from cosmos_hpc.worker.video.clips import Cut, VideoError, read_clip, read_clips
from tests.worker import make_videos


def psnr(a, b):
    error = (torch.as_tensor(a).float() - torch.as_tensor(b).float()).square().mean()
    return float(10 * torch.log10(255**2 / error.clamp(min=1e-9)))


def test_frames_come_out_as_they_went_in(tmp_path):
    pictures = make_videos.frames(20)
    path = make_videos.write(tmp_path / "v.mkv", pictures, "ffv1", "bgr0")  # lossless
    clip = read_clip(path, 17, 48, 80)
    assert clip.pixels.shape == (3, 17, 48, 80)
    assert clip.pixels.dtype == np.uint8
    assert (clip.padded, clip.rotated) == (0, 0)
    assert clip.seconds == pytest.approx(17 / 30, abs=1e-3)
    assert np.array_equal(clip.pixels, np.moveaxis(pictures[:17], -1, 0))


def bytes_read(path, frames):
    """Bytes that a process reads from the disk to get a clip."""
    code = (
        "import sys, pathlib; from cosmos_hpc.worker.video.clips import read_clip\n"
        "def count(): return int(open('/proc/self/io').read().split()[1])\n"
        "before = count(); read_clip(pathlib.Path(sys.argv[1]), int(sys.argv[2]), 48, 80)\n"
        "print(count() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, str(frames)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_only_the_frames_of_the_clip_are_decoded(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (300, 96, 160, 3), np.uint8)
    path = make_videos.write(tmp_path / "v.mp4", noise, options={"movflags": "+faststart"})
    assert path.stat().st_size > 1_500_000
    assert bytes_read(path, 9) < 0.2 * path.stat().st_size
    assert bytes_read(path, 300) > 0.9 * path.stat().st_size


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((48, 80), (48, 80)), ((96, 160), (48, 80)), ((50, 90), (48, 87)), ((33, 47), (56, 80))],
)
def test_resized_to_cover_then_cropped_to_the_centre(tmp_path, size, fitted):
    path = make_videos.write(tmp_path / "v.mkv", make_videos.frames(1, *size), "ffv1", "bgr0")
    pixels = read_clip(path, 1, 48, 80).pixels[:, 0]
    source = torch.from_numpy(make_videos.frames(1, *size)[0]).permute(2, 0, 1)[None].float()
    whole = torch.nn.functional.interpolate(source, fitted, mode="bilinear", antialias=True)[0]
    top, left = (fitted[0] - 48) // 2, (fitted[1] - 80) // 2
    assert psnr(pixels, whole[:, top : top + 48, left : left + 80]) > 45


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotation_metadata_is_followed(tmp_path, clockwise):
    pictures = make_videos.frames(9)
    sideways = np.rot90(pictures, clockwise // 90, (1, 2))  # turned back when it is played
    path = make_videos.write(tmp_path / "v.mp4", sideways)
    clip = read_clip(make_videos.set_rotation(path, clockwise), 9, 48, 80)
    assert clip.rotated == 360 - clockwise
    assert psnr(clip.pixels, np.moveaxis(pictures, -1, 0)) > 25


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("odd.mkv", "ffv1", "bgr0"),
        ("444.mp4", "libx264", "yuv444p"),
        ("10bit.mp4", "libx264", "yuv420p10le"),
        ("grey.mp4", "libx264", "gray"),
        ("mpeg4.avi", "mpeg4", "yuv420p"),
        ("vp9.webm", "libvpx-vp9", "yuv420p"),
        ("422.mov", "prores_ks", "yuv422p10le"),
        ("alpha.mkv", "ffv1", "bgra"),
    ],
)
def test_unusual_but_sound_videos_are_read(tmp_path, name, codec, pix_fmt):
    size = (49, 81) if name.startswith("odd") else (48, 80)
    pictures = make_videos.frames(9, *size)
    clip = read_clip(make_videos.write(tmp_path / name, pictures, codec, pix_fmt), 9, 48, 80)
    left, right = clip.pixels[0, :, :, :35], clip.pixels[0, :, :, 45:]
    assert right.mean() - left.mean() > 80


def test_a_short_video_is_padded_with_its_last_frame_or_refused(tmp_path):
    path = make_videos.write(tmp_path / "v.mp4", make_videos.frames(5))
    clip = read_clip(path, 9, 48, 80)
    assert clip.padded == 4
    assert (clip.pixels[:, 4:] == clip.pixels[:, 4:5]).all()
    with pytest.raises(VideoError, match="5 frames, a clip needs 9") as e:
        read_clip(path, 9, 48, 80, pad=False)
    assert e.value.kind == "short"


def broken(tmp_path, how):
    path = tmp_path / "v.mp4"
    pictures = make_videos.frames(60, 96, 160)
    if how == "no moov":
        return make_videos.truncate(make_videos.write(path, pictures), 0.7)
    if how == "cut":
        options = {"movflags": "+faststart"}
        return make_videos.truncate(make_videos.write(path, pictures, options=options), 0.75)
    if how == "cut mkv":
        return make_videos.truncate(make_videos.write(tmp_path / "v.mkv", pictures), 0.5)
    if how == "empty":
        path.touch()
    if how == "text":
        path.write_text("not a video\n" * 100)
    if how == "audio":
        return make_videos.write_audio(path)
    if how == "folder":
        path.mkdir()
    if how == "loop":
        path.symlink_to(tmp_path / "w.mp4")
        (tmp_path / "w.mp4").symlink_to(path)
    if how == "pipe":
        os.mkfifo(path)
    if how == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(10_000))
    return path


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("no moov", "unreadable", "not a readable video"),
        ("cut", "truncated", "truncated or damaged"),
        ("cut mkv", "truncated", "truncated or damaged"),
        ("empty", "unreadable", "the file is empty"),
        ("text", "unreadable", "not a readable video"),
        ("audio", "unreadable", "the file has no video stream"),
        ("folder", "unreadable", "not a readable video"),
        ("gone", "missing", "the file is not there"),
        ("loop", "unreadable", "Too many levels of symbolic links"),
        ("pipe", "unreadable", "it is not a file"),
        ("noise", "unreadable", "not a readable video"),
    ],
)
def test_broken_videos_say_why(tmp_path, how, kind, says):
    with pytest.raises(VideoError, match=says) as e:
        read_clip(broken(tmp_path, how), 60, 48, 80)
    assert e.value.kind == kind


def test_an_interlaced_video_is_read_frame_by_frame(tmp_path):
    pictures = make_videos.frames(9)
    woven = {"x264-params": "interlaced=1"}
    path = make_videos.write(tmp_path / "v.mp4", pictures, encoder=woven)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    clip = read_clip(path, 9, 48, 80)
    assert clip.padded == 0
    assert psnr(clip.pixels, np.moveaxis(pictures, -1, 0)) > 25


def test_a_video_of_one_frame(tmp_path):
    path = make_videos.write(tmp_path / "v.mp4", make_videos.frames(1))
    assert read_clip(path, 9, 48, 80).padded == 8
    assert read_clip(path, 1, 48, 80).padded == 0


def test_missing_time_stamps(tmp_path):
    stream = make_videos.write(tmp_path / "v.h264", make_videos.noisy(40)).rename(
        tmp_path / "a.mp4"
    )
    with av.open(str(stream)) as container:  # a bare stream without a container
        assert all(frame.pts is None for frame in container.decode(video=0))
    whole = read_clip(stream, 40, 48, 80).pixels
    assert psnr(whole, np.moveaxis(make_videos.noisy(40), -1, 0)) > 25
    # 25 frames per second is FFmpeg's guess.
    for start, begin in ((0.0, 0), (0.48, 12)):
        cut = Cut(9, 48, 80, every=True, start=start)
        clips = list(read_clips(stream, cut))
        assert len(clips) == (40 - begin) // 9
        for i, clip in enumerate(clips):
            assert np.array_equal(clip.pixels, whole[:, begin + 9 * i : begin + 9 * i + 9])
            assert clip.mark is None
        (last,) = read_clips(stream, cut, begin=len(clips) - 1)
        assert np.array_equal(last.pixels, clips[-1].pixels)


def test_frames_of_a_few_pixels(tmp_path):
    for size in ((1, 1), (2, 4), (1, 30)):
        picture = np.full((3, *size, 3), 99, np.uint8)
        path = make_videos.write(tmp_path / "v.mkv", picture, "ffv1", "bgr0")
        assert (read_clip(path, 3, 48, 80).pixels == 99).all()


def peak_megabytes(path):
    """Memory that a process took to find out about a file, and what it found."""
    code = (
        "import sys, pathlib, re; from cosmos_hpc.worker.video.clips import read_clip, VideoError\n"
        "try: read_clip(pathlib.Path(sys.argv[1]), 9, 48, 80); found = 'a clip'\n"
        "except VideoError as e: found = f'{e.kind}: {e}'\n"
        # Not ru_maxrss, in which Linux counts the process that started this one.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) // 1024, found)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    megabytes, _, found = done.stdout.strip().partition(" ")
    return int(megabytes), found


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "size"),
    [
        ("raw.avi", "rawvideo", "yuv420p", 30_000),
        ("raw.avi", "rawvideo", "yuv420p", 12_000),
        ("lossless.avi", "ffvhuff", "yuv420p", 30_000),
        ("lossless.avi", "ffvhuff", "yuv420p", 12_000),
    ],
)
def test_absurd_dimensions_take_no_memory(tmp_path, name, codec, pix_fmt, size):
    path = make_videos.write(tmp_path / name, make_videos.frames(3), codec, pix_fmt)
    usual, _ = peak_megabytes(make_videos.write(tmp_path / "v.mp4", make_videos.frames(9)))
    format_chunk = path.read_bytes().index(b"strf") + 12
    content = bytearray(path.read_bytes())
    content[format_chunk : format_chunk + 8] = struct.pack("<ii", size, size)
    path.write_bytes(content)
    megabytes, found = peak_megabytes(path)
    assert found == f"too_large: the header says frames of {size}x{size} pixels"
    assert megabytes < usual + 60


def test_a_frame_that_cannot_cover_the_clip_is_too_large(tmp_path):
    picture = np.zeros((1, 2, 9000, 3), np.uint8)
    path = make_videos.write(tmp_path / "v.mkv", picture, "ffv1", "bgr0")
    with pytest.raises(VideoError, match="a picture of 9000x2 cannot cover a clip") as e:
        read_clip(path, 1, 640, 1024)
    assert e.value.kind == "too_large"


def test_a_huge_duration_in_the_header_says_nothing(tmp_path):
    path = make_videos.write(tmp_path / "v.mkv", make_videos.frames(20))
    make_videos.patch(path, b"00:00:00.666000000", b"99:59:59.000000000")
    assert read_clip(path, 9, 48, 80).padded == 0
    assert read_clip(path, 33, 48, 80).padded == 13


def test_time_stamps_that_are_hours_apart_make_no_endless_video(tmp_path):
    times = [0, 100, 200, 10_000_000]
    path = make_videos.write_timed(tmp_path / "v.mkv", make_videos.frames(4), times)
    assert len(list(read_clips(path, Cut(1, 48, 80, every=True)))) == 4
    with pytest.raises(VideoError, match="a time stamp that is hours away"):
        list(read_clips(path, Cut(1, 48, 80, every=True, frame_rate=10.0)))


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_a_list_that_names_other_files_is_not_followed(tmp_path, text):
    make_videos.write(tmp_path / "other.mp4", make_videos.frames(9))
    (tmp_path / "v.mp4").write_text(text.format("other.mp4"))
    with pytest.raises(VideoError) as e:
        read_clip(tmp_path / "v.mp4", 9, 48, 80)
    assert e.value.kind == "unreadable"


@pytest.mark.parametrize("name", [b"line\nbreak.mp4", b"not utf-8 \xff\xfe.mp4", b"http:x.mp4"])
def test_strange_names_are_read(tmp_path, name):
    usual = make_videos.write(tmp_path / "v.mp4", make_videos.frames(9))
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    usual.rename(path)
    assert read_clip(path, 9, 48, 80).padded == 0


def test_a_clip_before_the_damage_is_good(tmp_path):
    path = broken(tmp_path, "cut")
    assert read_clip(path, 9, 48, 80).padded == 0


def test_real_videos(driving):
    for path in sorted(driving.glob("*.mp4")):
        clip = read_clip(path, 33, 640, 1024)
        assert clip.pixels.shape == (3, 33, 640, 1024)
        assert clip.pixels.std() > 10
