"""Samples and an evaluation of a run, in the files that the stages of these names write."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_hpc.utils import files
from cosmos_hpc.worker.video.samples import SampleVideos, _scene
from cosmos_hpc.worker.video.writer import write_frames

#: Given frames of a clip.
GIVEN = 9
RATE = 12


def write_results(
    run: Path,
    clips: int = 3,
    frames: int = 33,
    size: tuple[int, int] = (96, 160),
    noise: float = 0.0,
    prompt: str | None = None,
    source: str = "scene-0000.mp4",
    task: str = "video",
) -> None:
    """Write generated clips, and the evaluation of them, into a run folder.

    The true frames are scenes of the package's own; those "generated" are the true ones with more
    and more noise, so that what is measured are real differences.
    """
    (run / "generated").mkdir()
    videos = run / "evaluation" / "videos"
    videos.mkdir(parents=True)
    scores: dict[str, list[list[float]]] = {
        "trained": [],
        "initial": [],
        "tokenizer": [],
        "repeat": [],
    }
    for clip in range(clips):
        random = np.random.default_rng(clip)
        true = _scene(random, SampleVideos(frames=frames, height=size[0], width=size[1]))
        if noise:
            true = _noisy(random, true, np.full(frames, noise))
        grows = np.maximum(0, np.arange(frames) - GIVEN + 1.0)
        made = {
            "truth": true,
            "tokenizer": _noisy(random, true, np.full(frames, 6.0)),
            "trained": _noisy(random, true, 4 * np.sqrt(grows)),
            "initial": _noisy(random, true, 20 * np.sqrt(grows)),
            "repeat": np.concatenate(
                [true[:GIVEN], np.repeat(true[GIVEN - 1 : GIVEN], frames - GIVEN, 0)]
            ),
        }
        for name in ("truth", "tokenizer"):
            write_frames(videos / f"{clip:04d}-{name}.mp4", made[name].transpose(3, 0, 1, 2), RATE)
        for key, weights in ((f"{clip:04d}-s0", "trained"), (f"{clip:04d}-initial", "initial")):
            write_frames(
                run / "generated" / f"{key}.mp4", made[weights].transpose(3, 0, 1, 2), RATE
            )
            record = _record(key, clip, weights, frames, size, prompt, source)
            files.write_json(run / "generated" / f"{key}.json", record)
        for name, rows in scores.items():
            rows.append(
                [_psnr(a, b) for a, b in zip(true[GIVEN:], made[name][GIVEN:], strict=True)]
            )
    files.write_json(run / "evaluation" / "metrics.json", _metrics(scores, task))


def _noisy(random: np.random.Generator, frames: np.ndarray, strength: np.ndarray) -> np.ndarray:
    noise = random.standard_normal(frames.shape) * strength[:, None, None, None]
    return (frames + noise).clip(0, 255).astype(np.uint8)


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-3))


def _record(
    key: str,
    clip: int,
    weights: str,
    frames: int,
    size: tuple[int, int],
    prompt: str | None,
    source: str,
) -> dict[str, Any]:
    return {
        "key": key,
        "clip": clip,
        "sample": 0,
        "weights": weights,
        "source": source,
        "source_clip": 0,
        "time": 1.5 * clip,
        "seconds": frames / RATE,
        "part": "test",
        "prompt": prompt,
        "frames": frames,
        "condition_frames": GIVEN,
        "frame_rate": RATE,
        "height": size[0],
        "width": size[1],
        "seed": 1234,
        "sampling": {"temperature": 1.0, "top_p": 0.8, "seed": 1234},
        "checkpoint": "train/checkpoints/last",
        "step": 2,
        "versions": {"python": "3.11"},
        "video": f"{key}.mp4",
        "ids": f"{key}.safetensors",
    }


def _metrics(scores: dict[str, list[list[float]]], task: str) -> dict[str, Any]:
    def of(psnr: np.ndarray) -> dict[str, Any]:
        ssim = 1 - 8 / psnr
        return {
            "psnr": float(psnr.mean()),
            "ssim": float(ssim.mean()),
            "lpips": None,
            "psnr_per_frame": psnr.mean(0).tolist(),
            "ssim_per_frame": ssim.mean(0).tolist(),
            "given": {"psnr": 34.0, "ssim": 0.95},
        }

    arrays = {name: np.array(rows) for name, rows in scores.items()}
    forced = {"loss": 4.2, "top1": 0.31, "top5": 0.52}
    latent = [{**forced, "loss": 4.5 - 0.1 * t} for t in range(5)]
    before = [{**row, "loss": row["loss"] + 5} for row in latent]
    return {
        "task": task,
        "part": "test",
        "clips": len(arrays["trained"]),
        "condition_frames": GIVEN,
        "teacher_forced": {
            "clips": len(arrays["trained"]),
            "trained": {**forced, "per_latent_frame": latent},
            "initial": {"loss": 9.2, "top1": 0.01, "top5": 0.04, "per_latent_frame": before},
        },
        "generated": {name: of(psnr) for name, psnr in arrays.items()},
        "per_clip": [
            {
                "clip": clip,
                "source": f"scene-{clip:04d}.mp4",
                **{
                    name: {
                        "psnr": float(psnr[clip].mean()),
                        "ssim": float(1 - 8 / psnr[clip].mean()),
                    }
                    for name, psnr in arrays.items()
                },
            }
            for clip in range(len(arrays["trained"]))
        ],
        "notes": ["LPIPS is left out: its weights are not installed."],
    }
