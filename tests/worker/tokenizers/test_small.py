import pytest
import torch

from cosmos_hpc.data.tokens import FSQ_LEVELS, latent_shape
from cosmos_hpc.errors import WorkError
from cosmos_hpc.worker.tokenizers.small import write_small_tokenizer
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.clips import read_clip

SIZES = [((8, 16, 16), (17, 96, 160)), ((4, 8, 8), (9, 48, 80))]


@pytest.fixture(scope="module", params=SIZES, ids=["8x16x16", "4x8x8"])
def pair(request, tmp_path_factory):
    compression, clip = request.param
    folder = tmp_path_factory.mktemp("tokenizer")
    write_small_tokenizer(folder, compression)
    return folder, compression, clip


def clips(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (count, 3, 3, 6, 10), generator=generator, dtype=torch.uint8)
    grown = torch.nn.functional.interpolate(small.float(), size=size, mode="trilinear")
    return grown.round().to(torch.uint8)


def test_interface_of_the_published_scripts(pair):
    folder, compression, size = pair
    shape = latent_shape(*size, compression)
    encoder, decoder = (torch.jit.load(folder / f"{n}.jit") for n in ("encoder", "decoder"))
    video = (clips(2, size).float() / 127.5 - 1).to(torch.bfloat16)
    ids, codes, loss = encoder(video)
    assert ids.shape == (2, *shape)
    assert codes.shape == (2, 6, *shape)
    assert codes.dtype == torch.bfloat16
    assert loss.sum() == 0
    decoded = decoder(ids)
    assert decoded.shape == video.shape
    assert decoded.abs().max() <= 1
    # The id is the mixed-radix number of the digits c * (L // 2) + L // 2, first level lowest.
    digits = torch.stack(
        [codes[:, i].float() * (n // 2) + n // 2 for i, n in enumerate(FSQ_LEVELS)]
    )
    radix = torch.tensor([1, 8, 64, 512, 2560, 12800]).view(6, 1, 1, 1, 1)
    assert torch.equal((digits.round() * radix).sum(0).int(), ids)


def test_causal_in_time(pair):
    folder, compression, size = pair
    tokenizer = VideoTokenizer(folder, latent_shape(*size, compression))
    video = clips(1, size)
    changed = video.clone()
    changed[:, :, 1 + compression[0] :] = 255 - changed[:, :, 1 + compression[0] :]
    before, after = tokenizer.encode(video), tokenizer.encode(changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2:], after[:, 2:])


def test_ids_do_not_depend_on_the_batch(pair):
    folder, compression, size = pair
    tokenizer = VideoTokenizer(folder, latent_shape(*size, compression))
    video = clips(5, size)
    one_by_one = torch.cat([tokenizer.encode(v[None]) for v in video])
    assert torch.equal(tokenizer.encode(video), one_by_one)


def test_every_id_decodes(pair):
    folder, compression, _ = pair
    ids = torch.arange(64_000).view(1, 1, 200, 320)
    decoded = VideoTokenizer(folder, (1, 200, 320)).decode(ids)
    assert decoded.shape == (1, 3, 1, 200 * compression[1], 320 * compression[2])


@pytest.mark.parametrize(
    ("compression", "size", "decibels"),
    [((8, 16, 16), (17, 96, 160), 22.5), ((4, 8, 8), (17, 320, 512), 27.5)],
)
def test_real_pictures_stay_recognisable(driving, tmp_path, compression, size, decibels):
    write_small_tokenizer(tmp_path, compression)
    tokenizer = VideoTokenizer(tmp_path, latent_shape(*size, compression))
    values = []
    for path in sorted(driving.glob("*.mp4")):
        pixels = torch.from_numpy(read_clip(path, *size).pixels)
        decoded = tokenizer.decode(tokenizer.encode(pixels[None]))[0]
        error = (decoded.float() - pixels.float()).square().mean()
        values.append(10 * torch.log10(255**2 / error))
    assert torch.stack(values).mean() > decibels


def test_a_tokenizer_that_does_not_fit_says_so(tmp_path):
    write_small_tokenizer(tmp_path, (4, 8, 8))
    with pytest.raises(WorkError, match=r"gives tokens of shape \[5, 12, 20\], the recipe expects"):
        VideoTokenizer(tmp_path, (3, 6, 10)).encode(clips(1, (17, 96, 160)))
    (tmp_path / "encoder.jit").write_text("not TorchScript")
    with pytest.raises(WorkError, match="encoder.jit is not a TorchScript file"):
        VideoTokenizer(tmp_path, (3, 6, 10))
    (tmp_path / "encoder.jit").unlink()
    with pytest.raises(WorkError, match="has no encoder.jit"):
        VideoTokenizer(tmp_path, (3, 6, 10))
