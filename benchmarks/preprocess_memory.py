"""Memory of all processes of one preprocess task, over many clips.

    python benchmarks/preprocess_memory.py [--clips 10000]

Makes one small video, takes all its clips under many names, and prints the resident memory of the
task and of its decoders as the clips go by. Pages that processes share count in each of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import tempfile
from pathlib import Path

CLIPS_OF_A_VIDEO = 20


def resident() -> list[float]:
    """Megabytes of this process and of its children."""
    pids = ["self", *sorted(str(child.pid) for child in multiprocessing.active_children())]
    sizes = []
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        sizes.append(round(int(found[1]) / 1024, 1) if found else 0.0)
    return sizes


def main(clips: int) -> None:
    """Print the memory at every twentieth of the way."""
    from cosmos_hpc.config.recipes import load_recipe
    from cosmos_hpc.runs.folder import RunFolder
    from cosmos_hpc.worker.datasets.journal import Journal
    from cosmos_hpc.worker.datasets.shard import VideoShard
    from cosmos_hpc.worker.stages.download import download
    from cosmos_hpc.worker.video.samples import SampleVideos, make_sample_videos

    with tempfile.TemporaryDirectory() as folder:
        made, videos = Path(folder, "made"), Path(folder, "videos")
        length = 9 * CLIPS_OF_A_VIDEO
        make_sample_videos(made, SampleVideos(count=1, frames=length, height=48, width=80))
        videos.mkdir()
        for i in range(clips // CLIPS_OF_A_VIDEO):
            (videos / f"{i:05d}.mp4").symlink_to(made / "scene-0000.mp4")
        size = ["data.frames=9", "data.height=48", "data.width=80", "data.clips=all"]
        recipe = load_recipe(
            "ar_tiny", [f"data.input={videos}", "data.batch_size=32", "data.decoders=2", *size]
        )
        run = RunFolder(Path(folder, "run"))
        run.data.pin(str(videos), sorted(p.name for p in videos.iterdir()), 1)
        download(run, recipe)

        class Watched(VideoShard):
            """A shard that says how much memory there is in use."""

            clips = 0

            def _write(self) -> None:
                before, every = self.clips, clips // 20
                self.clips += sum(len(ids) for _, ids in self._rows)
                super()._write()
                if before // every != self.clips // every:
                    print(f"{self.clips:6} clips  {resident()} MB", flush=True)

        with Journal(run.tokens.journal(0), recipe.data.ids_per_clip) as journal:
            Watched(run, recipe, 0, journal).fill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=10_000)
    main(parser.parse_args().clips)
