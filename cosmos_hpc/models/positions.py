"""Rotary positions over latent frames, rows and columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cosmos_hpc.models.config import ModelConfig


def _frequencies(channels: int, original_length: int, config: ModelConfig) -> Tensor:
    """Inverse frequencies of one axis, float32 ``[channels / 2]``, stretched by YaRN if set.

    YaRN (Peng et al., 2023, "NTK-by-parts"): frequencies that turn more than ``beta_fast`` times
    over the original length stay, those below ``beta_slow`` are divided by the scale, and those
    between are mixed linearly.
    """
    even = torch.arange(0, channels, 2, dtype=torch.float32)
    plain = float(config.rotary_base) ** -(even / channels)
    if config.yarn_scale is None:
        return plain
    assert config.yarn_beta_fast is not None and config.yarn_beta_slow is not None
    high = 2 * math.pi * config.yarn_beta_fast / original_length
    low = 2 * math.pi * config.yarn_beta_slow / original_length
    keep = ((plain - low) / (high - low)).clamp(0, 1)
    return plain * ((1 - keep) / config.yarn_scale + keep)


def rotary_angles(config: ModelConfig) -> Tensor:
    """Angles of every position of a clip, float32 ``[T * H * W, kv_channels]``.

    A third of the channels (rounded down to even) turns with the row, as many with the column,
    the rest with the latent frame. The half-table ``[time | height | width]`` stands twice, as
    the "rotate half" convention wants.
    """
    frames, rows, columns = config.latent_shape
    space = config.kv_channels // 6 * 2
    time = config.kv_channels - 2 * space
    # Without YaRN the original length plays no part.
    original_time, original_rows, _ = config.yarn_original_latent_shape or config.latent_shape
    by_time = _frequencies(time, original_time, config)
    # Both spatial axes share the rows' original length: the published models do.
    by_space = _frequencies(space, original_rows, config)

    shape = (frames, rows, columns)
    t, h, w = (torch.arange(n, dtype=torch.float32) for n in shape)
    half = torch.cat(
        [
            torch.outer(t, by_time)[:, None, None].expand(*shape, -1),
            torch.outer(h, by_space)[None, :, None].expand(*shape, -1),
            torch.outer(w, by_space)[None, None, :].expand(*shape, -1),
        ],
        dim=-1,
    ).flatten(0, 2)
    return torch.cat([half, half], dim=-1)
