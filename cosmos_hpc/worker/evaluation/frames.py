"""Similarity of frames to the true ones: PSNR, SSIM and, where its weights are found, LPIPS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

#: Of equal frames PSNR is infinite; means need a number.
MAX_PSNR = 100.0
#: Pixels at each side that the window of SSIM does not fit.
_BORDER = 5
#: What LPIPS compares by; torchvision keeps the weights under this name.
_ALEXNET = "alexnet-owt-7be5be79.pth"

#: Values of each frame, by the name of the score.
Scores = dict[str, list[float]]


class FrameScores:
    """Scores frames one by one, on the GPU where there is one.

    Attributes:
        left_out: a sentence about what cannot be computed here; None where all can.
    """

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._lpips, self.left_out = _open_lpips(self._device)

    @torch.inference_mode()
    def of(self, frames: np.ndarray, truth: np.ndarray) -> Scores:
        """Scores of frames uint8 ``[3, T, H, W]``, RGB, against as many true ones.

        Returns:
            ``psnr`` in dB, at most :data:`MAX_PSNR`, over all pixels and colours of a frame;
            ``ssim`` as Wang et al. define it (2004), the mean over colours; and ``lpips`` by
            AlexNet, where its weights are found. Each ``[T]``.
        """
        found: Scores = defaultdict(list)
        for number in range(frames.shape[1]):
            one, other = (self._frame(pixels, number) for pixels in (frames, truth))
            psnr = float(peak_signal_noise_ratio(one, other, data_range=255.0))
            found["psnr"].append(min(psnr, MAX_PSNR))
            found["ssim"].append(_ssim(one, other))
            if self._lpips:
                found["lpips"].append(self._lpips(one / 127.5 - 1, other / 127.5 - 1))
        return dict(found)

    def _frame(self, pixels: np.ndarray, number: int) -> Tensor:
        """float32 ``[1, 3, H, W]`` of 0 to 255."""
        frame = np.ascontiguousarray(pixels[:, number])
        return torch.from_numpy(frame).to(self._device)[None].float()


def _ssim(one: Tensor, other: Tensor) -> float:
    """Of frames ``[1, 3, H, W]``, over the places where the window lies within the picture.

    With a Gaussian window of 11 pixels, sigma 1.5. Torchmetrics' own mean has the border in it,
    with what it makes up beyond.
    """
    _, places = structural_similarity_index_measure(
        one, other, data_range=255.0, sigma=1.5, return_full_image=True
    )
    return float(places[..., _BORDER:-_BORDER, _BORDER:-_BORDER].mean())


def _open_lpips(
    device: torch.device,
) -> tuple[Callable[[Tensor, Tensor], float] | None, str | None]:
    """A function of two frames in [-1, 1]; or None, and why."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET
    if not weights.is_file():
        return None, f"LPIPS is left out: there is no {weights}, AlexNet's weights of torchvision"
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type="alex").to(device)
    except (ImportError, ModuleNotFoundError):
        return None, "LPIPS is left out: torchvision is not installed"
    return lambda one, other: float(metric(one, other)), None
