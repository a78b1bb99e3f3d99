"""Drives a Cosmos video tokenizer: an ``encoder.jit`` / ``decoder.jit`` pair of TorchScript."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cosmos_hpc.errors import WorkError
from cosmos_hpc.tokens import NUM_IDS


class VideoTokenizer:
    """An encoder and decoder on one device.

    Args:
        folder: holds ``encoder.jit`` and ``decoder.jit``.
        latent_shape: ``(T, H, W)`` that every clip must give.
        device: where the scripts run.

    Raises:
        WorkError: a file is missing or is not TorchScript.
    """

    def __init__(
        self, folder: Path, latent_shape: tuple[int, int, int], device: torch.device | str = "cpu"
    ) -> None:
        self.folder, self.latent_shape = folder, tuple(latent_shape)
        self.device = torch.device(device)
        self._encoder = self._load("encoder.jit")
        self._decoder: torch.jit.ScriptModule | None = None

    def _load(self, name: str) -> torch.jit.ScriptModule:
        path = self.folder / name
        if not path.is_file():
            raise WorkError(f"the tokenizer folder {self.folder} has no {name}")
        try:
            return torch.jit.load(str(path), map_location=self.device).eval()
        except RuntimeError as e:
            reason = str(e).strip().splitlines()[0]
            raise WorkError(f"{path} is not a TorchScript file: {reason}") from None

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Ids int32 ``[B, T', H', W']`` on the CPU of uint8 pixels ``[B, 3, T, H, W]``.

        Raises:
            WorkError: the tokenizer gives another latent shape, or ids outside its code.
        """
        # Clip by clip: all of a batch in float32 would be gigabytes at full size.
        video = torch.empty(pixels.shape, dtype=torch.bfloat16, device=self.device)
        for i, clip in enumerate(pixels):
            video[i] = clip.to(self.device).float().div_(127.5).sub_(1.0)
        ids = self._encoder(video)[0].to(torch.int32).cpu()
        if tuple(ids.shape[1:]) != self.latent_shape:
            raise WorkError(
                f"the tokenizer in {self.folder} gives ids of shape {list(ids.shape[1:])}, the "
                f"recipe expects {list(self.latent_shape)}; do data.tokenizer and "
                f"data.compression agree?"
            )
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < NUM_IDS):
            raise WorkError(f"the tokenizer in {self.folder} gives ids outside 0..{NUM_IDS - 1}")
        return ids

    @torch.inference_mode()
    def decode(self, ids: Tensor) -> Tensor:
        """Pixels uint8 ``[B, 3, T, H, W]`` on the CPU of integer ids ``[B, T', H', W']``."""
        if self._decoder is None:
            self._decoder = self._load("decoder.jit")
        video = self._decoder(ids.to(self.device))
        return video.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()
