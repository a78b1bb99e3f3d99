import re

import pytest

from cosmos_hpc.data.tokens import FSQ_LEVELS, NUM_IDS, latent_shape


@pytest.mark.parametrize(
    ("clip", "compression", "shape"),
    [
        ((33, 640, 1024), (8, 16, 16), (5, 40, 64)),
        ((17, 320, 512), (4, 8, 8), (5, 40, 64)),
        ((1, 480, 640), (8, 16, 16), (1, 30, 40)),
    ],
)
def test_latent_shapes_of_the_published_sizes(clip, compression, shape):
    assert latent_shape(*clip, compression) == shape


def test_the_code_has_64000_ids():
    assert FSQ_LEVELS == (8, 8, 8, 5, 5, 5)
    assert NUM_IDS == 64_000


@pytest.mark.parametrize(
    ("clip", "says"),
    [
        ((32, 640, 1024), "frames=32 is not 8k+1; the nearest are 25 and 33"),
        ((0, 640, 1024), "the nearest are 1 and 9"),
        ((33, 650, 1024), "height=650 is not a multiple of 16; the nearest are 640 and 656"),
        ((33, 640, 8), "width=8 is not a multiple of 16; the nearest are 16 and 32"),
    ],
)
def test_impossible_sizes_name_the_nearest_right_ones(clip, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        latent_shape(*clip, (8, 16, 16))
