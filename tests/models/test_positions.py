"""The rotary table against its definition, position by position."""

import math

import pytest
import torch

from cosmos_hpc.models import ModelConfig
from cosmos_hpc.models.positions import rotary_angles
from cosmos_hpc.recipes import load_recipe


def frequency(i, channels, config, original):
    """Inverse frequency of the channel pair ``i`` of an axis, from the definition."""
    f = config.rotary_base ** (-2 * i / channels)
    if config.yarn_scale is None:
        return f
    high = 2 * math.pi * config.yarn_beta_fast / original
    low = 2 * math.pi * config.yarn_beta_slow / original
    keep = min(1, max(0, (f - low) / (high - low)))
    return f * ((1 - keep) / config.yarn_scale + keep)


def expected(position, config):
    _, rows, columns = config.latent_shape
    t, rest = divmod(position, rows * columns)
    h, w = divmod(rest, columns)
    space = config.kv_channels // 6 * 2
    time = config.kv_channels - 2 * space
    original = config.yarn_original_latent_shape or config.latent_shape
    half = [t * frequency(i, time, config, original[0]) for i in range(time // 2)]
    half += [h * frequency(i, space, config, original[1]) for i in range(space // 2)]
    half += [w * frequency(i, space, config, original[1]) for i in range(space // 2)]
    return torch.tensor(half + half, dtype=torch.float64)


@pytest.mark.parametrize("name", ["ar4b", "ar12b", "ar_tiny"])
def test_full_size_tables(name):
    config = load_recipe(name).model_for_clips()
    angles = rotary_angles(config)
    assert angles.shape == (config.sequence_length, config.kv_channels)
    for position in (0, 1, 63, 64, 2560, config.sequence_length - 1):
        at = position % config.sequence_length
        torch.testing.assert_close(angles[at].double(), expected(at, config), rtol=1e-5, atol=1e-5)


def test_channels_of_a_128_wide_head_are_44_42_42():
    config = load_recipe("ar4b").model_for_clips()
    a = rotary_angles(config).view(5, 40, 64, 128)
    assert (a[1:, 0, 0, :22] > 0).all()
    assert not a[:, 0, 0, 22:64].any()
    assert (a[0, 1:, 0, 22:43] > 0).all()
    assert not a[0, :, 0, 43:64].any()
    assert (a[0, 0, 1:, 43:64] > 0).all()


def test_sizes_that_do_not_fit_are_refused():
    sizes = {
        "num_layers": 1,
        "hidden_size": 8,
        "ffn_hidden_size": 8,
        "num_attention_heads": 2,
        "num_query_groups": 1,
        "kv_channels": 8,
        "latent_shape": (1, 2, 2),
    }
    assert ModelConfig(**sizes).sequence_length == 4
    for wrong in ({"kv_channels": 7}, {"num_query_groups": 3}, {"yarn_scale": 2.0}):
        with pytest.raises(ValueError, match=r"kv_channels=7|num_query_groups=3|YaRN needs"):
            ModelConfig(**{**sizes, **wrong})
