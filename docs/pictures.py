"""Draws the pictures of the README from a run: ``python docs/pictures.py demo/runs/demo``."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import av
import matplotlib

matplotlib.use("svg")  # no display is needed
import matplotlib.pyplot as plt
import numpy as np

import cosmos_hpc as ch
from cosmos_hpc.runs.samples import Samples

IMAGES = Path(__file__).parent / "images"
#: Clips that are shown, evenly spaced over all of them.
CLIPS = 3


def frames(path: Path) -> list[np.ndarray]:
    """All frames of a video, uint8 ``[H, W, 3]`` each."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def row(samples: Samples, clip: int) -> dict[str, np.ndarray]:
    """The last given frame of a clip, and what its last frame is like, by what it shows."""
    truth = frames(samples.truth(clip))
    shown = {}
    for sample in samples.clips()[clip]:
        given = sample.record["condition_frames"]
        shown[f"given: frame {given}"] = truth[given - 1]
        shown[f"truth: frame {len(truth)}"] = truth[-1]
        shown[sample.by] = frames(sample.path)[-1]
    return {**shown, "tokenizer alone": frames(samples.tokenizer(clip))[-1]}


def draw_samples(samples: Samples, path: Path) -> None:
    """A table of frames: a row for each clip."""
    every = list(samples.clips())
    chosen = [every[i * (len(every) - 1) // (CLIPS - 1)] for i in range(CLIPS)]
    rows = [row(samples, clip) for clip in chosen]
    figure, places = plt.subplots(
        len(rows), len(rows[0]), figsize=(10, 4.1), dpi=80, layout="constrained", squeeze=False
    )
    for line, found in zip(places, rows, strict=True):
        for place, frame in zip(line, found.values(), strict=True):
            place.imshow(frame)
            place.set_axis_off()
    for place, name in zip(places[0], rows[0], strict=True):
        place.set_title(name, fontsize=10)
    figure.savefig(path, format="png")
    plt.close(figure)


def main() -> None:
    """Draw ``samples.png``, and copy the run's own ``loss.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="name or path of a run that is done")
    run = ch.Run(parser.parse_args().run)
    draw_samples(run.samples(), IMAGES / "samples.png")
    shutil.copy(run.folder.train.loss_curve, IMAGES / "loss.png")


if __name__ == "__main__":
    main()
