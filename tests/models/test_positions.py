"""The shares of the axes in the rotary table, and sizes that do not fit."""

import pytest

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.models import ModelConfig
from cosmos_hpc.models.positions import rotary_angles


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
