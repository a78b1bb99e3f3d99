"""Turned, mirrored, of pixels that are not square, cropped: pictures as players show them."""

import re
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from cosmos_hpc.worker.video.clips import Cut, read_clip, read_clips
from cosmos_hpc.worker.video.orientation import orientation
from tests.conftest import REPOSITORY
from tests.worker import make_videos
from tests.worker.video.test_frames import peak_megabytes, psnr

GIVEN = REPOSITORY.parent / "shared" / "cases"
#: The eight display matrices: ``a b c d``, what is done (degrees counter-clockwise, mirrored
#: before), and the same of pictures ``[T, H, W, C]``.
WAYS = {
    (1, 0, 0, 1): (0, False, lambda p: p),
    (0, 1, -1, 0): (270, False, lambda p: np.rot90(p, -1, (1, 2))),
    (-1, 0, 0, -1): (180, False, lambda p: p[:, ::-1, ::-1]),
    (0, -1, 1, 0): (90, False, lambda p: np.rot90(p, 1, (1, 2))),
    (-1, 0, 0, 1): (0, True, lambda p: p[:, :, ::-1]),
    (1, 0, 0, -1): (180, True, lambda p: p[:, ::-1]),
    (0, 1, 1, 0): (90, True, lambda p: p.swapaxes(1, 2)),
    (0, -1, -1, 0): (270, True, lambda p: p[:, ::-1, ::-1].swapaxes(1, 2)),
}


def pictures(count=5, height=48, width=80):
    """Pictures whose four corners all differ."""
    made = make_videos.frames(count, height, width).astype(int)
    made[:, : height // 2, : width // 2, 0] = 250
    made[:, height // 2 :, width // 2 :, 1] = 10
    return made.astype(np.uint8)


def shown(clip):
    return np.moveaxis(clip.pixels, 0, -1)


@pytest.mark.parametrize("matrix", WAYS)
@pytest.mark.parametrize("scale", [1, 0.5])
def test_all_eight_orientations_of_a_track(tmp_path, matrix, scale):
    path = make_videos.write(tmp_path / "v.mp4", pictures())
    make_videos.set_matrix(path, *(scale * n for n in matrix))
    rotated, mirrored, way = WAYS[matrix]
    upright = way(pictures())
    clip = read_clip(path, 5, *upright.shape[1:3])
    assert psnr(shown(clip).copy(), upright.copy()) > 25
    assert clip.rotated == rotated
    assert clip.notes == ({"mirrored": True} if mirrored else {})


@pytest.mark.parametrize("matrix", WAYS)
@pytest.mark.parametrize("name", ["v.mkv", "v.mov"])
def test_orientations_in_other_containers(tmp_path, matrix, name):
    a, b, c, d = (n * 65536 for n in matrix)
    path = make_videos.write(tmp_path / name, pictures(), matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    upright = WAYS[matrix][2](pictures())
    # Matroska has rotations and their mirror images, as angles of a projection.
    clip = read_clip(path, 5, *upright.shape[1:3])
    assert psnr(shown(clip).copy(), upright.copy()) > 25


@pytest.mark.parametrize(("number", "matrix"), zip((1, 6, 3, 8, 2, 4, 5, 7), WAYS, strict=True))
def test_orientations_of_a_camera_that_writes_jpegs(tmp_path, number, matrix):
    path = make_videos.write(tmp_path / "plain.mov", pictures(), "mjpeg", "yuvj420p")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHxxI", 0x112, 3, 1, number, 0)
    segment = struct.pack(">HH", 0xFFE1, len(exif) + 2) + exif
    path = make_videos.copy(path, tmp_path / "v.mov", insert=segment, at=2)
    upright = WAYS[matrix][2](pictures())
    assert psnr(shown(read_clip(path, 5, *upright.shape[1:3])).copy(), upright.copy()) > 25


@pytest.mark.parametrize(("rotate", "flip"), [(90, ""), (0, "horizontal"), (90, "horizontal")])
def test_an_orientation_that_the_frames_carry_holds_until_the_next_key_frame(
    tmp_path, rotate, flip
):
    made = pictures(20, 80, 80)
    path = make_videos.write(
        tmp_path / "v.mp4", made, encoder={"x264-params": "bframes=3:scenecut=0"}
    )
    bits = f"h264_metadata=display_orientation=insert:rotate={rotate}"
    path = make_videos.rewrite(
        path, tmp_path / "turned.mp4", f"{bits}:flip={flip}" if flip else bits
    )
    clip = read_clip(path, 20, 80, 80)
    # H.264 mirrors first, then turns counter-clockwise.
    upright = np.rot90(made[:, :, ::-1] if flip else made, rotate // 90, (1, 2))
    assert psnr(shown(clip).copy(), upright.copy()) > 25
    assert "changed" not in clip.notes


def test_any_matrix_means_the_nearest_of_the_eight_orientations():
    for (a, b, c, d), (rotated, mirrored, _) in WAYS.items():
        assert orientation((a, b, c, d)) == (mirrored, rotated)
        # A little askew, and stretched.
        assert orientation((7 * a + b, 7 * b - a, 5 * c + d, 5 * d - c)) == (mirrored, rotated)
    assert orientation(None) == (False, 0)


def test_a_matrix_without_a_meaning_is_none(tmp_path):
    path = make_videos.write(tmp_path / "v.mp4", pictures())
    assert read_clip(make_videos.set_matrix(path, 0, 0, 0, 0), 5, 48, 80).rotated == 0


ASPECTS = {
    "v.mp4": ("libx264", "yuv420p"),
    "v.mkv": ("libx264", "yuv420p"),
    "v.ts": ("libx264", "yuv420p"),
    "v.mpg": ("mpeg2video", "yuv420p"),
    "mpeg4.avi": ("mpeg4", "yuv420p"),
    "hevc.mp4": ("libx265", "yuv420p"),
    "vp9.mp4": ("libvpx-vp9", "yuv420p"),
    "v.mov": ("prores_ks", "yuv422p10le"),
}


@pytest.mark.parametrize("name", ASPECTS)
def test_pixels_that_are_not_square(tmp_path, name):
    codec, pix_fmt = ASPECTS[name]
    # 80x45 and a little, as a picture of 16:9 is stored as one of 4:3.
    made = make_videos.frames(5, 48, 64)
    path = make_videos.write(tmp_path / name, made, codec, pix_fmt, pixel_aspect=Fraction(4, 3))
    clip = read_clip(path, 5, 48, 85)
    source = torch.from_numpy(made).permute(0, 3, 1, 2).float()
    wide = interpolate(source, (48, 86), mode="bilinear")[..., :85]
    assert psnr(clip.pixels, wide.permute(1, 0, 2, 3)) > 24
    assert clip.notes == {"pixel_aspect": "4:3"}


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "size", "aspect", "covered"),
    [
        ("pal.mpg", "mpeg2video", "yuv420p", (576, 720), Fraction(64, 45), (576, 1024)),
        ("ntsc.mpg", "mpeg2video", "yuv420p", (480, 720), Fraction(8, 9), (480, 640)),
        ("dv.avi", "dvvideo", "yuv420p", (576, 720), Fraction(16, 15), (576, 768)),
        ("hdv.mp4", "libx264", "yuv420p", (1080, 1440), Fraction(4, 3), (1080, 1920)),
    ],
)
def test_sizes_of_discs_and_tapes_cover_a_clip_of_the_shape_they_are_shown_with(
    tmp_path, name, codec, pix_fmt, size, aspect, covered
):
    made = np.zeros((2, *size, 3), np.uint8)
    made[:, :, : size[1] // 16], made[:, :, -size[1] // 16 :] = (250, 0, 0), (0, 0, 250)
    path = make_videos.write(tmp_path / name, made, codec, pix_fmt, pixel_aspect=aspect)
    clip = read_clip(path, 1, covered[0] // 2, covered[1] // 2)
    # Nothing of the edges is lost.
    assert clip.pixels[0, 0, :, 8].mean() > 200
    assert clip.pixels[2, 0, :, -8].mean() > 200
    assert clip.notes == {"pixel_aspect": f"{aspect.numerator}:{aspect.denominator}"}


def test_pixels_that_are_not_square_of_a_picture_on_its_side(tmp_path):
    made = pictures(5, 64, 48)
    path = make_videos.write(tmp_path / "v.mp4", made, pixel_aspect=Fraction(1, 2))
    make_videos.set_matrix(path, 0, 1, -1, 0)
    clip = read_clip(path, 5, 24, 64)
    source = torch.from_numpy(made).permute(0, 3, 1, 2).float()
    narrow = interpolate(source, (64, 24), mode="bilinear", antialias=True)
    assert psnr(clip.pixels, torch.rot90(narrow, -1, (2, 3)).permute(1, 0, 2, 3)) > 24


def matroska(path, aspect, made):
    """A track whose container says with what size it is shown, and its frames nothing."""
    make_videos.write(path, made, "ffv1", "bgr0", options={"live": "1"})
    # The unit of the size, not known so far, is pixels.
    make_videos.patch(path, b"\x54\xb2\x81\x04", b"\x54\xb2\x81\x00")
    size = struct.pack(">HBHHBH", 0x54B0, 0x82, aspect[0], 0x54BA, 0x82, aspect[1])
    return make_videos.insert_element(path, "1654ae6b ae e0", size)


def test_pixels_of_a_matroska_track(tmp_path):
    made = make_videos.frames(3, 48, 64)
    path = matroska(tmp_path / "v.mkv", (96, 48), made)
    clip = read_clip(path, 3, 48, 96)
    source = torch.from_numpy(made).permute(0, 3, 1, 2).float()
    wide = interpolate(source, (48, 96), mode="bilinear")
    assert psnr(clip.pixels, wide.permute(1, 0, 2, 3)) > 30
    assert clip.notes == {"pixel_aspect": "3:2"}


def test_what_the_container_says_goes_before_what_the_frames_say(tmp_path):
    made = make_videos.frames(5)
    path = make_videos.write(tmp_path / "v.mp4", made, pixel_aspect=Fraction(4, 3))
    said, other = (struct.pack(">4sII", b"pasp", *shape) for shape in ((4, 3), (3, 2)))
    assert read_clip(path, 5, 48, 80).notes == {"pixel_aspect": "4:3"}
    make_videos.patch(path, said, other)
    assert read_clip(path, 5, 48, 80).notes == {"pixel_aspect": "3:2"}


def test_what_a_matroska_track_crops(tmp_path):
    made = make_videos.frames(3, 48, 80)
    path = make_videos.write(tmp_path / "v.mkv", made, "ffv1", "bgr0", options={"live": "1"})
    crop = b"".join(
        struct.pack(">HBB", number, 0x81, pixels)
        for number, pixels in ((0x54CC, 6), (0x54DD, 10), (0x54BB, 4), (0x54AA, 2))
    )
    make_videos.insert_element(path, "1654ae6b ae e0", crop)
    clip = read_clip(path, 3, 42, 64)
    assert clip.notes == {"aperture": "64x42+6+4"}
    assert np.array_equal(shown(clip), made[:, 4:46, 6:70])


def test_an_aspect_that_moves_no_pixel_is_left_alone(tmp_path):
    made = make_videos.frames(3)
    clip = read_clip(matroska(tmp_path / "v.mkv", (16080, 9600), made), 3, 48, 80)
    assert np.array_equal(shown(clip), made)
    assert clip.notes == {}


@pytest.mark.parametrize("shape", [(30_000, 1), (1, 30_000)])
def test_an_absurd_aspect_takes_no_memory(tmp_path, shape):
    usual, _ = peak_megabytes(make_videos.write(tmp_path / "v.mp4", make_videos.frames(9)))
    path = matroska(tmp_path / "v.mkv", shape, make_videos.frames(9))
    megabytes, found = peak_megabytes(path)
    says = r"too_large: a picture of 80x48 with pixels of .* cannot cover a clip"
    assert re.fullmatch(says, found)
    assert megabytes < usual + 60


def two_halves(folder, name, first, second):
    """A stream whose second half differs from its first: size and aspect of pixels of each."""
    parts = []
    for number, (size, aspect) in enumerate((first, second)):
        part = folder / f"{number}.{name}"
        with make_videos.av.open(str(part), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            for i, picture in enumerate(make_videos.frames(12, *size)):
                frame = make_videos.av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i + 30 * number, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        parts.append(part.read_bytes())
    path = folder / name
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("name", ["v.ts", "v.h264"])
@pytest.mark.parametrize(
    ("size", "aspect"), [((96, 160), Fraction(1)), ((48, 80), Fraction(2)), ((96, 80), Fraction(2))]
)
def test_size_and_aspect_may_change_within_a_stream(tmp_path, name, size, aspect):
    path = two_halves(tmp_path, name, ((48, 80), Fraction(1)), (size, aspect))
    clip = read_clip(path, 24, 48, 80)
    for i, part in ((0, ((48, 80), Fraction(1))), (12, (size, aspect))):
        alone = make_videos.write(
            tmp_path / f"alone{i}.mp4", make_videos.frames(12, *part[0]), pixel_aspect=part[1]
        )
        assert psnr(clip.pixels[:, i : i + 12], read_clip(alone, 12, 48, 80).pixels) > 35
    assert clip.notes == {"changed": 12}
    # Clips behind the change say what was done to them.
    last = list(read_clips(path, Cut(8, 48, 80, every=True)))[2]
    said = {} if aspect == 1 else {"pixel_aspect": "2:1"}
    assert last.notes == said


def test_a_clean_aperture_is_what_is_seen(tmp_path):
    made = pictures(5, 96, 160)
    path = make_videos.write(tmp_path / "v.mp4", made)
    whole = read_clip(path, 5, 96, 160).pixels
    make_videos.set_aperture(path, 140, 80, 6, -4)
    clip = read_clip(path, 5, 80, 140)
    assert clip.notes == {"aperture": "140x80+16+4"}
    assert psnr(clip.pixels, whole[:, :, 4:84, 16:156]) > 35


def test_high_dynamic_range_is_named_and_its_values_are_taken_as_they_are(tmp_path):
    made = make_videos.frames(3)
    usual = make_videos.write(tmp_path / "v.mkv", made, "ffv1", "yuv420p10le")
    for transfer, name in ((16, "pq"), (18, "hlg")):
        path = make_videos.write(
            tmp_path / f"{name}.mkv", made, "ffv1", "yuv420p10le", transfer=transfer
        )
        clip = read_clip(path, 3, 48, 80)
        assert clip.notes == {"hdr": name}
        assert np.array_equal(clip.pixels, read_clip(usual, 3, 48, 80).pixels)


@pytest.mark.skipif(not GIVEN.is_dir(), reason="no such files beside the checkout")
def test_given_videos_are_shown_as_players_show_them():
    folder = GIVEN / "mirrored-comes-upside-down"
    plain = read_clip(folder / "plain.mp4", 5, 96, 160)
    clip = read_clip(folder / "m_hflip.mp4", 5, 96, 160)
    assert np.array_equal(clip.pixels, plain.pixels[..., ::-1])
    wide = read_clip(GIVEN / "pixel-aspect-ignored" / "sar.mp4", 9, 96, 160)
    assert wide.notes == {"pixel_aspect": "4:3"}
