"""A causal 3D convolutional FSQ tokenizer of random weights: interface and size of a real one.

Two levels of Haar wavelets fold 4x4x4 pixels into channels, residual blocks of causal convolutions
go down to 8x16x16, and a finite scalar quantiser gives 64 000 ids. The decoder goes the same way
back.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = (8, 8, 8, 5, 5, 5)


class CausalConv(nn.Module):
    """A 3D convolution that sees no later frame: the first frame is repeated before it."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv3d(inputs, outputs, size, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, C, T, H, W]``."""
        if self.size > 1:
            x = torch.cat([x[:, :, :1].expand(-1, -1, self.size - 1, -1, -1), x], 2)
            edge = self.size // 2
            x = F.pad(x, (edge, edge, edge, edge, 0, 0))
        return self.conv(x)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(1, inputs), nn.GroupNorm(1, outputs)])
        self.first, self.second = CausalConv(inputs, outputs), CausalConv(outputs, outputs)
        self.short = CausalConv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Change the channels of ``[B, C, T, H, W]``."""
        y = x
        for norm, conv in zip(self.norms, (self.first, self.second), strict=True):
            # Statistics of a frame each: later ones must not count.
            b, c, t, h, w = y.shape
            flat = norm(y.transpose(1, 2).reshape(b * t, c, h, w))
            y = conv(F.silu(flat).reshape(b, t, c, h, w).transpose(1, 2))
        return self.short(x) + y


def haar(x: Tensor) -> Tensor:
    """One level of wavelets: ``[B, C, 1 + 2T, 2H, 2W]`` to ``[B, 8C, 1 + T, H, W]``."""
    x = torch.cat([x[:, :, :1], x], 2)
    for dim in (2, 3, 4):
        even, odd = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
        x = torch.cat([even + odd, even - odd], 1) * 0.5**0.5
    return x


class RandomEncoder(nn.Module):
    """Pixels ``[B, 3, 1 + 8T, 16H, 16W]`` in [-1, 1] to ids ``[B, 1 + T, H, W]`` and codes.

    Args:
        width: channels of the first level; 160 with 2 blocks make 100 million parameters.
        blocks: at each level.
    """

    levels: Tensor
    radix: Tensor

    def __init__(self, width: int = 160, blocks: int = 2) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = [CausalConv(192, width)]
        channels = width
        for level, outputs in enumerate(widths):
            for _ in range(blocks):
                layers.append(Block(channels, outputs))
                channels = outputs
            # Half in space twice, and in time once: 4x4x4 of the wavelets becomes 8x16x16.
            if level in (0, 1):
                stride = (2, 2, 2) if level == 0 else (1, 2, 2)
                layers.append(Down(channels, stride))
        layers += [nn.SiLU(), CausalConv(channels, 16), nn.Conv3d(16, len(LEVELS), 1)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("levels", torch.tensor(LEVELS).view(1, -1, 1, 1, 1))
        radix = torch.cumprod(torch.tensor((1, *LEVELS[:-1])), 0).view(1, -1, 1, 1, 1)
        self.register_buffer("radix", radix)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode; ids int32, codes in [-1, 1] and a zero loss."""
        latent = self.layers(haar(haar(video))).float() * 8
        half = self.levels // 2
        digits = (torch.tanh(latent) * (self.levels - 1) / 2 + half).round()
        digits = torch.minimum(digits.clamp(min=0), self.levels - 1)
        ids = (digits.long() * self.radix).sum(1).int()
        return ids, ((digits - half) / half).to(video.dtype), video.new_zeros(1)


class Down(nn.Module):
    """A convolution with a stride."""

    def __init__(self, channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.time = stride[0]
        self.conv = nn.Conv3d(channels, channels, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Make ``[B, C, T, H, W]`` smaller."""
        x = torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1), x], 2)
        return self.conv(F.pad(x, (0, 1, 0, 1, 0, 0)))


class Up(nn.Module):
    """Twice as large in space, and in time where that is wanted: nearest, then a convolution."""

    def __init__(self, channels: int, time: int) -> None:
        super().__init__()
        self.time, self.conv = time, CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Make ``[B, C, T, H, W]`` larger."""
        x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        if self.time > 1:
            x = x.repeat_interleave(2, 2)[:, :, 1:]
        return self.conv(x)


def inverse_haar(x: Tensor) -> Tensor:
    """``[B, 8C, 1 + T, H, W]`` to ``[B, C, 1 + 2T, 2H, 2W]``."""
    for dim in (4, 3, 2):
        total, difference = x.chunk(2, 1)
        pair = torch.stack([total + difference, total - difference], dim + 1) * 0.5**0.5
        x = pair.flatten(dim, dim + 1)
    return x[:, :, 1:]


class RandomDecoder(nn.Module):
    """Ids ``[B, 1 + T, H, W]`` to pixels ``[B, 3, 1 + 8T, 16H, 16W]`` in [-1, 1].

    Args:
        width, blocks: as for :class:`RandomEncoder`.
    """

    levels: Tensor
    radix: Tensor

    def __init__(self, width: int = 160, blocks: int = 2) -> None:
        super().__init__()
        widths = (4 * width, 4 * width, 2 * width, width)
        layers: list[nn.Module] = [CausalConv(len(LEVELS), widths[0])]
        channels = widths[0]
        for level, outputs in enumerate(widths):
            for _ in range(blocks):
                layers.append(Block(channels, outputs))
                channels = outputs
            if level in (1, 2):
                layers.append(Up(channels, time=level))
        layers += [nn.SiLU(), CausalConv(channels, 192)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("levels", torch.tensor(LEVELS).view(1, -1, 1, 1, 1))
        radix = torch.cumprod(torch.tensor((1, *LEVELS[:-1])), 0).view(1, -1, 1, 1, 1)
        self.register_buffer("radix", radix)

    def forward(self, ids: Tensor) -> Tensor:
        """Decode to bf16, or whatever the weights are."""
        digits = (ids.long()[:, None] // self.radix) % self.levels
        half = self.levels // 2
        codes = (digits - half) / half
        return torch.tanh(inverse_haar(inverse_haar(self.layers(codes.to(torch.bfloat16)))))


def write_random_tokenizer(
    folder: Path,
    shape: tuple[int, int, int],
    width: int,
    blocks: int,
    device: str,
    decoder: bool = False,
) -> int:
    """Trace an encoder in bf16 into ``FOLDER/encoder.jit``, and a decoder beside it if wanted.

    Returns:
        The number of the encoder's parameters.
    """
    torch.manual_seed(0)
    encoder = RandomEncoder(width, blocks).to(device, torch.bfloat16).eval()
    example = torch.zeros(1, 3, *shape, dtype=torch.bfloat16, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        torch.jit.trace(encoder, example, check_trace=False).save(str(folder / "encoder.jit"))
        if decoder:
            ids = encoder(example)[0]
            back = RandomDecoder(width, blocks).to(device, torch.bfloat16).eval()
            torch.jit.trace(back, ids, check_trace=False).save(str(folder / "decoder.jit"))
    return sum(p.numel() for p in encoder.parameters())
