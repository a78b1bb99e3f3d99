"""Positions over latent frames, rows and columns: rotary angles, and a sine-cosine table."""

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


def _axes(channels: int) -> tuple[int, int]:
    """Channels of the time axis, and of each spatial one: a third, rounded down to even."""
    space = channels // 6 * 2
    return channels - 2 * space, space


def _over_clip(config: ModelConfig, by_time: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """``[positions, channels]`` of all positions of a sample from tables of its three axes.

    The row of begin-of-video and the rows of the padding are zero.
    """
    shape = config.latent_shape
    rows = torch.cat(
        [
            by_time[:, None, None].expand(*shape, -1),
            by_row[None, :, None].expand(*shape, -1),
            by_column[None, None, :].expand(*shape, -1),
        ],
        dim=-1,
    ).flatten(0, 2)
    before = config.special_ids_first
    after = config.sequence_length - len(rows) - before
    return torch.nn.functional.pad(rows, (0, 0, before, after))


def rotary_angles(config: ModelConfig) -> Tensor:
    """Angles of every input of a sample, float32 ``[sequence_length, kv_channels]``.

    A third of the channels (rounded down to even) turns with the row, as many with the column,
    the rest with the latent frame. The half-table ``[time | height | width]`` stands twice, as
    the "rotate half" convention wants.
    """
    time, space = _axes(config.kv_channels)
    # Without YaRN the original length has no influence.
    original_time, original_rows, _ = config.yarn_original_latent_shape or config.latent_shape
    by_time = _frequencies(time, original_time, config)
    # Both spatial axes share the rows' original length: the published models do.
    by_space = _frequencies(space, original_rows, config)
    t, h, w = (torch.arange(n, dtype=torch.float32) for n in config.latent_shape)
    half = _over_clip(
        config, torch.outer(t, by_time), torch.outer(h, by_space), torch.outer(w, by_space)
    )
    return torch.cat([half, half], dim=-1)


def absolute_positions(config: ModelConfig) -> Tensor:
    """Sine-cosine table of every input of a sample, float32 ``[sequence_length, hidden_size]``.

    Each axis has its share of the width, ``[sin | cos]``, with frequencies
    ``10000 ** -(i / (d / 2))`` (Vaswani et al., 2017, for three axes).
    """
    time, space = _axes(config.hidden_size)

    def axis(length: int, width: int) -> Tensor:
        omega = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
        angles = torch.outer(torch.arange(length, dtype=torch.float64), omega)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float()

    frames, rows, columns = config.latent_shape
    return _over_clip(config, axis(frames, time), axis(rows, space), axis(columns, space))


def turns(freqs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and sines of angles, and the sines of turning back; kept for the next layer.

    Each forward pass has angles of its own, so that nothing of a validation is used in training.
    """
    kept: tuple[Tensor, Tensor, Tensor] | None = getattr(freqs, "turns", None)
    if kept is None:
        sine = freqs.sin()
        kept = freqs.turns = freqs.cos(), sine, -sine  # type: ignore[attr-defined]
    return kept
