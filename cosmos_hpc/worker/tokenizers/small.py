"""A small tokenizer of the same interface and the same code as Cosmos' discrete ones.

For machines without the real ones. It has no trained weights: a block of pixels (8x16x16 or 4x8x8,
causal in time) becomes its mean colour and the slope of its brightness, quantised to the same
64 000 ids. Six digits a block keep a picture recognisable, not sharp.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_hpc.data.tokens import FSQ_LEVELS
from cosmos_hpc.utils import files

# Full-range YCbCr of JFIF (ITU-R BT.601).
_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
# Slopes and chroma are mostly small: a square root spends the few levels there, and they rarely
# pass half (slopes) or a quarter (chroma) of their range.
_SLOPE_GAIN = 2.0
_CHROMA_GAIN = 4.0


class _Blocks(nn.Module):
    """What encoder and decoder share: block sizes, levels and the companding curve."""

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are strings
        positions: Tensor
        to_ycc: Tensor
        to_rgb: Tensor
        levels: Tensor
        middle: Tensor
        radix: Tensor
        gains: Tensor

    def __init__(self, compression: Sequence[int]) -> None:
        super().__init__()
        self.frames, self.size = int(compression[0]), int(compression[1])
        positions = (torch.arange(self.size, dtype=torch.float64) + 0.5) / self.size * 2 - 1
        to_ycc = torch.tensor(_TO_YCC, dtype=torch.float64)
        self.register_buffer("positions", positions)
        self.register_buffer("to_ycc", to_ycc)
        self.register_buffer("to_rgb", torch.linalg.inv(to_ycc))
        self.register_buffer("levels", torch.tensor(FSQ_LEVELS))
        self.register_buffer("middle", torch.tensor(FSQ_LEVELS) // 2)
        radix = torch.cumprod(torch.tensor((1, *FSQ_LEVELS[:-1])), 0)
        self.register_buffer("radix", radix)
        self.register_buffer(
            "gains",
            torch.tensor(
                [_SLOPE_GAIN, _SLOPE_GAIN, _CHROMA_GAIN, _CHROMA_GAIN], dtype=torch.float64
            ),
        )


class SmallEncoder(_Blocks):
    """Pixels to tokens."""

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode ``video``, ``[B, 3, T, H, W]`` in [-1, 1], any float dtype.

        Returns:
            ids int32 ``[B, T', H', W']``, codes ``[B, 6, T', H', W']`` in [-1, 1] and dtype of the
            input, and a zero loss.
        """
        means: list[Tensor] = []
        across: list[Tensor] = []
        down: list[Tensor] = []
        for t in range(1 + (video.shape[2] - 1) // self.frames):
            rows = self._blocks(video, t)
            means.append(rows.mean((3, 5)))
            across.append((rows.mean(3) * self.positions).mean(-1))
            down.append((rows.mean(-1) * self.positions.view(-1, 1)).mean(3))
        ycc = torch.stack([self._mix(torch.stack(means, 2), i) for i in range(3)], 1)
        spread = (self.positions * self.positions).mean()
        slopes = torch.stack(
            [self._mix(torch.stack(across, 2), 0), self._mix(torch.stack(down, 2), 0)], 1
        )
        slopes = slopes / spread
        small = torch.cat([slopes, ycc[:, 1:]], 1) * self.gains.view(1, -1, 1, 1, 1)
        small = torch.sign(small) * torch.sqrt(small.abs().clamp(max=1.0))

        brightness = ycc[:, :1]
        coarse = self._digits(brightness, 0, 1)
        rest = (brightness - (coarse - 4) / 4) * 8.0 / 1.001
        digits = torch.cat([coarse, self._digits(small, 1, 5), self._digits(rest, 5, 6)], 1)
        shape = [1, -1, 1, 1, 1]
        ids = (digits.to(torch.int64) * self.radix.view(shape)).sum(1).to(torch.int32)
        codes = (digits - self.middle.view(shape)) / self.middle.view(shape)
        return ids, codes.to(video.dtype), torch.zeros(1, dtype=video.dtype, device=video.device)

    def _blocks(self, video: Tensor, t: int) -> Tensor:
        """Mean frame of latent frame ``t`` in blocks, float64 ``[B, 3, H', size, W', size]``.

        Pixels of 8 bits, as bf16, are multiples of 2**-15: a sum of 8 of them is exact in float32,
        and weighted with multiples of 1/16 in float64. So the ids depend neither on the order of
        summation nor on the rest of the batch.
        """
        first = max(0, 1 + (t - 1) * self.frames)
        frames = self.frames if t > 0 else 1
        total = video[:, :, first].to(torch.float32)
        for frame in range(first + 1, first + frames):
            total = total + video[:, :, frame].to(torch.float32)
        b, c, height, width = total.shape
        s = self.size
        mean = (total / frames).to(torch.float64)
        return mean.reshape(b, c, height // s, s, width // s, s)

    def _mix(self, rgb: Tensor, channel: int) -> Tensor:
        """One channel of YCbCr; a product of matrices might round differently by size."""
        weights = self.to_ycc[channel]
        return rgb[:, 0] * weights[0] + rgb[:, 1] * weights[1] + rgb[:, 2] * weights[2]

    def _digits(self, values: Tensor, start: int, end: int) -> Tensor:
        """Digit of each value in [-1, 1] for levels ``start`` to ``end``."""
        middle = self.middle[start:end].view(1, -1, 1, 1, 1)
        top = self.levels[start:end].view(1, -1, 1, 1, 1) - 1
        digits = torch.round(values * middle) + middle
        return torch.minimum(digits.clamp(min=0.0), top)


class SmallDecoder(_Blocks):
    """Tokens to pixels."""

    def forward(self, ids: Tensor) -> Tensor:
        """Decode integer ``ids``, ``[B, T', H', W']``, to bf16 ``[B, 3, T, H, W]`` in [-1, 1]."""
        shape = [1, -1, 1, 1, 1]
        digits = (ids.to(torch.int64).unsqueeze(1) // self.radix.view(shape)) % self.levels.view(
            shape
        )
        codes = (digits - self.middle.view(shape)) / self.middle.view(shape).to(torch.float64)
        small = codes[:, 1:5]
        small = torch.sign(small) * small * small / self.gains.view(shape)
        brightness = codes[:, 0] + codes[:, 5] * 1.001 / 8.0
        across, down = small[:, 0], small[:, 1]

        s = self.size
        rows, columns = ids.shape[2] * s, ids.shape[3] * s
        x = self.positions.repeat(ids.shape[3])
        y = self.positions.repeat(ids.shape[2]).view(-1, 1)
        planes = self._nearest(brightness) + self._nearest(across) * x + self._nearest(down) * y
        # Half of each block's own plane, half of the planes of its neighbours blended: softens
        # the edges of the blocks without losing their slopes.
        centre_x = (torch.arange(ids.shape[3], device=ids.device) * 2 + 1).to(torch.float64)
        centre_y = (torch.arange(ids.shape[2], device=ids.device) * 2 + 1).to(torch.float64)
        at_x = (torch.arange(columns, device=ids.device) + 0.5) * (2.0 / s)
        at_y = ((torch.arange(rows, device=ids.device) + 0.5) * (2.0 / s)).view(-1, 1)
        origin = brightness - across * centre_x - down * centre_y.view(-1, 1)
        blended = self._smooth(origin) + self._smooth(across) * at_x + self._smooth(down) * at_y
        luma = 0.5 * (planes + blended)
        ycc = torch.stack([luma, self._smooth(small[:, 2]), self._smooth(small[:, 3])], 1)
        rgb = torch.einsum("ij,bjthw->bithw", self.to_rgb, ycc).clamp(-1.0, 1.0)
        rgb = rgb.repeat_interleave(self.frames, dim=2)[:, :, self.frames - 1 :]
        return rgb.to(torch.bfloat16)

    def _nearest(self, blocks: Tensor) -> Tensor:
        return blocks.repeat_interleave(self.size, 2).repeat_interleave(self.size, 3)

    def _smooth(self, blocks: Tensor) -> Tensor:
        size = [blocks.shape[2] * self.size, blocks.shape[3] * self.size]
        return F.interpolate(blocks, size=size, mode="bilinear", align_corners=False)


def write_small_tokenizer(folder: Path, compression: Sequence[int]) -> None:
    """Write ``encoder.jit`` and ``decoder.jit`` into ``folder``.

    Args:
        compression: (time, height, width) factors, with equal height and width.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (
        ("encoder", SmallEncoder(compression)),
        ("decoder", SmallDecoder(compression)),
    ):
        path = folder / f"{name}.jit"
        temporary = folder / f".{name}.jit.tmp"
        torch.jit.script(module.eval()).save(str(temporary))
        files.fsync_path(temporary)
        temporary.replace(path)
