"""Data sets in LeRobot's layouts, written as lerobot 0.4 writes and converts them.

By hand, with pyarrow and PyAV: lerobot itself wants an older torch and an older PyAV than this
package. One that it has written is in ``tests/fixtures``.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
RATE = 10
TASKS = ("pick up the cube", "open the drawer")


def picture(episode: int, frame: int, camera: str = FRONT) -> np.ndarray:
    """A picture that says in its shades which one it is: uint8 ``[96, 128, 3]``.

    Episode and frame are written in rows of blocks, black or white, which survive compression.
    """
    image = np.full((96, 128, 3), 60 if camera == FRONT else 180, np.uint8)
    for bit in range(8):
        image[:32, bit * 16 : bit * 16 + 16] = 255 * (episode >> bit & 1)
        image[32:64, bit * 16 : bit * 16 + 16] = 255 * (frame >> bit & 1)
    return image


def read(image: np.ndarray) -> tuple[int, int]:
    """Episode and frame that a decoded :func:`picture`, ``[3, 96, 128]``, is of."""
    grey = image.astype(np.float32).mean(0)
    rows = [[grey[y, bit * 16 + 8] > 127 for bit in range(8)] for y in (16, 48)]
    episode, frame = (sum(int(on) << bit for bit, on in enumerate(row)) for row in rows)
    return episode, frame


def action(episode: int, frame: int, width: int = 7) -> list[float]:
    """Of a frame; every one is another."""
    return [float(np.float32(episode + frame / 100 + i / 7)) for i in range(width)]


def state(episode: int, frame: int) -> list[float]:
    """Six joints and a gripper behind them."""
    return [float(np.float32(frame + joint / 10)) for joint in range(6)] + [episode / 4]


@dataclass
class Robot:
    """A data set to write.

    Attributes:
        lengths: frames of each episode.
        version: of the layout.
        codec: of the videos; ``image`` keeps pictures in the rows.
        cameras: names of the features.
        width: numbers of an action.
        actions: replaces the action of a frame, by episode and frame.
        info: added to the information.
        files: episodes in each file of version 3.
        rate: frames per second.
        keys: frames from one key frame to the next.
        shown: frames of an episode's video where they are not as many as its rows.
    """

    lengths: tuple[int, ...] = (5, 8, 3, 6)
    version: str = "v3.0"
    codec: str = "libx264"
    cameras: tuple[str, ...] = (FRONT,)
    width: int = 7
    actions: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    files: int = 3
    rate: float = RATE
    keys: int = 2
    shown: dict[int, int] = field(default_factory=dict)

    @property
    def is_third(self) -> bool:
        return self.version.startswith("v3")

    def write(self, folder: Path) -> Path:
        """Write it; returns the folder."""
        (folder / "meta").mkdir(parents=True)
        self._write_info(folder)
        groups = [
            list(range(len(self.lengths)))[first : first + (self.files if self.is_third else 1)]
            for first in range(0, len(self.lengths), self.files if self.is_third else 1)
        ]
        episodes = []
        for number, group in enumerate(groups):
            self._write_rows(folder, number, group)
            starts = dict.fromkeys(group, 0.0)
            for camera in self.cameras if self.codec != "image" else ():
                starts = self._write_video(folder, camera, number, group)
            for episode in group:
                row = {
                    "episode_index": episode,
                    "tasks": [TASKS[episode % 2]],
                    "length": self.lengths[episode],
                }
                if self.is_third:
                    row |= {"data/chunk_index": 0, "data/file_index": number}
                    for camera in self.cameras if self.codec != "image" else ():
                        end = starts[episode] + self._shown(episode) / self.rate
                        row |= {
                            f"videos/{camera}/chunk_index": 0,
                            f"videos/{camera}/file_index": number,
                            f"videos/{camera}/from_timestamp": starts[episode],
                            f"videos/{camera}/to_timestamp": end,
                        }
                    row |= {f"stats/action/{k}": v for k, v in self.stats([episode]).items()}
                episodes.append(row)
        self._write_meta(folder, episodes)
        return folder

    def _shown(self, episode: int) -> int:
        return self.shown.get(episode, self.lengths[episode])

    def stats(self, episodes: list[int]) -> dict[str, list[float]]:
        """Of the actions of some episodes."""
        rows = np.array([self.action(e, f) for e in episodes for f in range(self.lengths[e])])
        found = {"mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0)}
        return {key: value.tolist() for key, value in found.items()} | {"count": [len(rows)]}

    def action(self, episode: int, frame: int) -> list[float]:
        return self.actions.get((episode, frame), action(episode, frame, self.width))

    def _write_info(self, folder: Path) -> None:
        names = ["height", "width", "channels"]
        dtype = "image" if self.codec == "image" else "video"
        one = {"shape": [1], "names": None}
        joints = [f"joint_{n}.pos" for n in range(6)]
        features: dict[str, Any] = {
            "action": {
                "dtype": "float32",
                "shape": [self.width],
                "names": [f"motor_{n}" for n in range(self.width)],
            },
            "observation.state": {
                "dtype": "float32",
                "shape": [7],
                "names": {"motors": [*joints, "gripper.pos"]},
            },
            "timestamp": {"dtype": "float32", **one},
            **{
                key: {"dtype": "int64", **one}
                for key in ("frame_index", "episode_index", "index", "task_index")
            },
            **{
                camera: {"dtype": dtype, "shape": [96, 128, 3], "names": names}
                for camera in self.cameras
            },
        }
        if self.is_third:
            paths = {
                "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/"
                "file-{file_index:03d}.mp4",
            }
        else:
            paths = {
                "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
                "episode_{episode_index:06d}.mp4",
            }
        info = {
            "codebase_version": self.version,
            "robot_type": "so100",
            "total_episodes": len(self.lengths),
            "total_frames": sum(self.lengths),
            "chunks_size": 1000,
            "fps": self.rate,
            "splits": {"train": f"0:{len(self.lengths)}"},
            **paths,
            "features": features,
            **self.info,
        }
        (folder / "meta" / "info.json").write_text(json.dumps(info))

    def _write_rows(self, folder: Path, number: int, group: list[int]) -> None:
        """The rows of some episodes, each a row group as lerobot writes them."""
        name = f"file-{number:03d}" if self.is_third else f"episode_{group[0]:06d}"
        path = folder / "data" / "chunk-000" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = []
        for episode in group:
            frames = range(self.lengths[episode])
            vectors = pa.list_(pa.float32())
            actions = [self.action(episode, f) for f in frames]
            columns = {
                "action": pa.array(actions, vectors),
                "observation.state": pa.array([state(episode, f) for f in frames], vectors),
                "timestamp": pa.array([f / self.rate for f in frames], pa.float32()),
                "frame_index": pa.array(frames, pa.int64()),
                "episode_index": pa.array([episode] * len(frames), pa.int64()),
                "task_index": pa.array([episode % 2] * len(frames), pa.int64()),
            }
            if self.codec == "image":
                kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                for camera in self.cameras:
                    pictures = [
                        {"bytes": png(picture(episode, f, camera)), "path": f"frame-{f:06d}.png"}
                        for f in range(self._shown(episode))
                    ]
                    columns[camera] = pa.array(pictures, kind)
            tables.append(pa.table(columns))
        with pq.ParquetWriter(path, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)

    def _write_video(
        self, folder: Path, camera: str, number: int, group: list[int]
    ) -> dict[int, float]:
        """A video of some episodes one after the other; returns when each begins."""
        if self.is_third:
            path = folder / "videos" / camera / "chunk-000" / f"file-{number:03d}.mp4"
        else:
            path = folder / "videos" / "chunk-000" / camera / f"episode_{group[0]:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        starts, at = {}, 0
        with av.open(str(path), "w") as container:
            options = {"g": str(self.keys)}
            if self.codec == "libsvtav1":
                options |= {"crf": "30", "preset": "12"}
            rate = Fraction(self.rate).limit_denominator(1000)
            stream = container.add_stream(self.codec, rate=rate, options=options)
            stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
            for episode in group:
                starts[episode] = at / self.rate
                for frame in range(self._shown(episode)):
                    image = np.ascontiguousarray(picture(episode, frame, camera))
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                    at += 1
            container.mux(stream.encode())
        return starts

    def _write_meta(self, folder: Path, episodes: list[dict[str, Any]]) -> None:
        stats = self.stats(list(range(len(self.lengths))))
        if not self.is_third:
            lines = {
                "episodes.jsonl": episodes,
                "tasks.jsonl": [{"task_index": i, "task": text} for i, text in enumerate(TASKS)],
                "episodes_stats.jsonl": [
                    {"episode_index": e, "stats": {"action": self.stats([e])}}
                    for e in range(len(self.lengths))
                ],
            }
            for name, rows in lines.items():
                text = "".join(json.dumps(row) + "\n" for row in rows)
                (folder / "meta" / name).write_text(text)
            return
        path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(episodes), path)
        tasks = pa.table({"task_index": list(range(len(TASKS))), "task": list(TASKS)})
        pq.write_table(tasks, folder / "meta" / "tasks.parquet")
        (folder / "meta" / "stats.json").write_text(json.dumps({"action": stats}))


def png(image: np.ndarray) -> bytes:
    """A picture as a file of PNG."""
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "rgb24"
    codec.time_base = Fraction(1, 10)
    buffer = io.BytesIO()
    for packet in [*codec.encode(frame), *codec.encode(None)]:
        buffer.write(bytes(packet))
    return buffer.getvalue()
