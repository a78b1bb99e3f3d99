"""PSNR of the small tokenizer: decode(encode(video)) beside the video.

python benchmarks/small_tokenizer.py VIDEOS [PICTURE.png]

With a picture, three frames of one clip are drawn above their decoded ones.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from cosmos_hpc.data.tokens import latent_shape
from cosmos_hpc.data.videos import list_video_files
from cosmos_hpc.worker.tokenizers.small import write_small_tokenizer
from cosmos_hpc.worker.tokenizers.video import VideoTokenizer
from cosmos_hpc.worker.video.clips import read_clip

CASES = [
    ((8, 16, 16), (17, 96, 160)),
    ((8, 16, 16), (33, 640, 1024)),
    ((4, 8, 8), (17, 320, 512)),
]


def draw(pixels: torch.Tensor, decoded: torch.Tensor, path: str) -> None:
    """Three frames above their decoded ones, as a PNG."""
    from matplotlib.image import imsave

    chosen = [0, pixels.shape[1] // 2, pixels.shape[1] - 1]
    rows = [torch.cat([v[:, t] for t in chosen], -1) for v in (pixels, decoded)]
    imsave(path, np.ascontiguousarray(torch.cat(rows, -2).permute(1, 2, 0).numpy()))


def main(folder: str, picture: str | None) -> None:
    """Print the mean and the lowest PSNR of the videos for each size."""
    videos = [row["path"] for row in list_video_files(folder)[1]]
    for compression, size in CASES:
        with tempfile.TemporaryDirectory() as made:
            write_small_tokenizer(Path(made), compression)
            tokenizer = VideoTokenizer(Path(made), latent_shape(*size, compression))
            values = []
            for video in videos:
                pixels = torch.from_numpy(read_clip(Path(folder) / video, *size).pixels)
                decoded = tokenizer.decode(tokenizer.encode(pixels[None]))[0]
                error = (decoded.float() - pixels.float()).square().mean()
                values.append(float(10 * torch.log10(255**2 / error)))
                if picture and size[1] == 640 and video == videos[0]:
                    draw(pixels, decoded, picture)
        shape = "x".join(map(str, compression))
        clip = "x".join(map(str, size))
        mean, least = statistics.mean(values), min(values)
        print(f"{shape:<8} {clip:<12} {len(values)} clips  {mean:.1f} dB, lowest {least:.1f} dB")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
