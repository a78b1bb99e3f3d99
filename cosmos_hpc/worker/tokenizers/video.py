"""Drives a Cosmos video tokenizer: an ``encoder.jit`` / ``decoder.jit`` pair of TorchScript."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos_hpc.data.tokens import NUM_IDS
from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils.progress import say


class VideoTokenizer:
    """An encoder and decoder on one device.

    Args:
        folder: holds ``encoder.jit`` and ``decoder.jit``.
        latent_shape: ``(T, H, W)`` that every clip must give.
        device: where the scripts run.
        streams: of a GPU, on which clips are encoded at the same time.

    Raises:
        WorkError: a file is missing or is not TorchScript.
    """

    def __init__(
        self,
        folder: Path,
        latent_shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        streams: int = 1,
    ) -> None:
        self.folder, self.latent_shape = folder, tuple(latent_shape)
        self.device = torch.device(device)
        self._encoder = self._load("encoder.jit")
        self._decoder: torch.jit.ScriptModule | None = None
        self._pinned: list[np.ndarray] = []
        if self.device.type == "cuda":
            self._streams = itertools.cycle(
                [torch.cuda.Stream(self.device) for _ in range(streams)]
            )
            # The weights are there before any of them starts.
            torch.cuda.synchronize(self.device)

    def _load(self, name: str) -> torch.jit.ScriptModule:
        path = self.folder / name
        if not path.is_file():
            raise WorkError(f"the tokenizer folder {self.folder} has no {name}")
        try:
            return torch.jit.load(str(path), map_location=self.device).eval()
        except RuntimeError as e:
            reason = str(e).strip().splitlines()[0]
            raise WorkError(f"{path} is not a TorchScript file: {reason}") from None

    def encode(self, pixels: Tensor | np.ndarray) -> Tensor:
        """Ids int32 ``[B, T', H', W']`` on the CPU of uint8 pixels ``[B, 3, T, H, W]``.

        Raises:
            WorkError: the tokenizer gives another latent shape, or ids outside its code.
        """
        started = [self.start(clip) for clip in pixels]
        return torch.stack([encoding.ids() for encoding in started])

    @torch.inference_mode()
    def start(self, pixels: Tensor | np.ndarray) -> Encoding:
        """Begin to encode one clip, uint8 ``[3, T, H, W]``; on a GPU without waiting for it.

        The encoder sees one clip at a time: how a convolution rounds depends on the size of the
        batch and on the place in it, and ids must not. One clip leaves much of a GPU idle, so that
        the next ones run beside it, each on a stream of its own. The pixels have to stay as they
        are until the ids are asked for.

        Raises:
            WorkError: the GPU has not enough memory.
        """
        clip = torch.as_tensor(pixels)
        if self.device.type != "cuda":
            return Encoding(self, self._encode(self._scaled(clip)))
        try:
            with torch.cuda.stream(next(self._streams)):
                return self._start_on_gpu(clip)
        except torch.cuda.OutOfMemoryError:
            size = "x".join(map(str, clip.shape[1:]))
            raise WorkError(
                f"the GPU has not enough memory to encode clips of {size}; "
                f"give it fewer at a time with a smaller data.batch_size"
            ) from None

    def _start_on_gpu(self, clip: Tensor) -> Encoding:
        # From pinned memory beside what the other streams compute.
        clip = clip.to(self.device, non_blocking=True)
        video = torch.empty(clip.shape, dtype=torch.bfloat16, device=self.device)
        # In float32; only what is stored is bf16.
        torch.sub(torch.div(clip, 127.5), 1.0, out=video)
        ids = self._encode(video)
        host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        host.copy_(ids, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Encoding(self, host, done)

    def _encode(self, video: Tensor) -> Tensor:
        # TorchScript's optimizer watches the first calls and fuses operations in later ones, which
        # then round differently: a clip's tokens would depend on how many came before it.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self._encoder(video[None])[0][0].to(torch.int32)

    def _scaled(self, clip: Tensor) -> Tensor:
        video = torch.empty(clip.shape, dtype=torch.bfloat16)
        # Frame by frame: what is in the cache is not fetched again.
        for frame in range(clip.shape[1]):
            video[:, frame] = clip[:, frame].float().div_(127.5).sub_(1.0)
        return video

    def pin(self, memory: np.ndarray) -> None:
        """Let the GPU copy from this memory by itself; without a GPU, nothing."""
        if self.device.type != "cuda":
            return
        pointer, size = memory.ctypes.data, memory.nbytes
        if int(torch.cuda.cudart().cudaHostRegister(pointer, size, 0)):
            say(f"{size / 1e9:.1f} GB could not be pinned: clips reach the GPU more slowly")
        else:
            self._pinned.append(memory)

    def unpin(self) -> None:
        """Undo :meth:`pin`, before the memory goes."""
        while self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._pinned.pop().ctypes.data)

    def check(self, ids: Tensor) -> None:
        """Refuse tokens that the recipe does not expect."""
        if tuple(ids.shape) != self.latent_shape:
            raise WorkError(
                f"the tokenizer in {self.folder} gives tokens of shape {list(ids.shape)}, the "
                f"recipe expects {list(self.latent_shape)}; do data.tokenizer and "
                f"data.compression agree?"
            )
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < NUM_IDS):
            raise WorkError(f"the tokenizer in {self.folder} gives tokens outside 0..{NUM_IDS - 1}")

    @torch.inference_mode()
    def decode(self, ids: Tensor) -> Tensor:
        """Pixels uint8 ``[B, 3, T, H, W]`` on the CPU of integer ids ``[B, T', H', W']``."""
        if self._decoder is None:
            self._decoder = self._load("decoder.jit")
        video = self._decoder(ids.to(self.device))
        return video.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()


class Encoding:
    """A clip on its way through the encoder."""

    def __init__(self, tokenizer: VideoTokenizer, ids: Tensor, done: Any = None) -> None:
        self._tokenizer, self._ids, self._done = tokenizer, ids, done

    def ids(self) -> Tensor:
        """Ids int32 ``[T', H', W']`` on the CPU, once they are there.

        Raises:
            WorkError: the tokenizer gives another latent shape, or ids outside its code.
        """
        if self._done is not None:
            self._done.synchronize()
        self._tokenizer.check(self._ids)
        return self._ids
