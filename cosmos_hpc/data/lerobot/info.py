"""What a LeRobot data set says of itself: version, rate, cameras, features and paths."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import Struct

from cosmos_hpc.errors import RequestError

INFO = "meta/info.json"
#: Of the files below ``meta`` what is read before a run, ``|`` and a ``*`` as in
#: :class:`cosmos_hpc.hub.needs.HubFiles`.
META = (INFO, "meta/episodes*|", "meta/stats.json|")
STATE = "observation.state"
#: The newest version whose layout is known.
_NEWEST = (3, 0)


class LeRobot(Struct, frozen=True):
    """What ``meta/info.json`` says.

    Attributes:
        folder: of the data set.
        version: of the layout, major and minor.
        rate: frames per second.
        features: by name, each with ``dtype``, ``shape`` and ``names``.
        info: all of it.
    """

    folder: Path
    version: tuple[int, int]
    rate: float
    features: dict[str, dict[str, Any]]
    info: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> LeRobot:
        """Read what a folder says of itself.

        Raises:
            RequestError: it cannot be read, or is of a version that is not known.
        """
        path = Path(folder) / INFO
        try:
            info = json.loads(path.read_bytes())
            version = _version(info["codebase_version"])
            features = {str(k): dict(v) for k, v in info["features"].items()}
            rate = float(info["fps"])
            if not (0 < rate < 1e6):
                raise ValueError(f"fps is {rate:g}")
        except OSError as e:
            raise RequestError(f"{path} cannot be read: {e.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise RequestError(
                f"{path} is not that of a LeRobot data set: {type(e).__name__}: {e}"
            ) from None
        if version > _NEWEST:
            raise RequestError(
                f"{path} is of version {info['codebase_version']}; the newest that is known here "
                f"is v{_NEWEST[0]}.{_NEWEST[1]}"
            )
        if version[0] < 2:
            raise RequestError(
                f"{path} is of version {info['codebase_version']}; convert it to v2.1 or v3.0 with "
                f"the scripts of lerobot"
            )
        return cls(Path(folder), version, rate, features, info)

    @property
    def cameras(self) -> list[str]:
        """Features that are pictures a person would see, not depth maps."""
        return [name for name in self._pictures() if not self._is_depth(name)]

    def _pictures(self) -> list[str]:
        kinds = ("video", "image")
        return [name for name, feature in self.features.items() if feature.get("dtype") in kinds]

    def _is_depth(self, name: str) -> bool:
        said = {**(self.features[name].get("video_info") or {}), **self.features[name]}
        said |= said.get("info") or {}
        flagged = said.get("video.is_depth_map") or said.get("is_depth_map")
        return bool(flagged) or "depth" in name.rpartition(".")[2].lower()

    def camera(self, wanted: str | None) -> str:
        """The feature that is meant: its name, or the last part of it.

        Raises:
            RequestError: there are several and none is chosen, there is no such, or it is a depth
                map.
        """
        there, all_pictures = self.cameras, self._pictures()
        where = f"data.input={self.folder}"
        if not there:
            depth = f", only depth maps ({', '.join(all_pictures)})" if all_pictures else ""
            raise RequestError(f"{where} has no camera{depth}")
        listed = f"cameras are {', '.join(there)}"
        if wanted is None:
            if len(there) > 1:
                raise RequestError(f"{where} has several cameras; set data.camera; {listed}")
            return there[0]
        found = [n for n in all_pictures if wanted in (n, n.rpartition(".")[2])]
        if len(found) != 1:
            raise RequestError(f"{where} has no camera {wanted!r}; {listed}")
        if found[0] not in there:
            raise RequestError(
                f"data.camera={found[0]} is a depth map, which the video tokenizer does not read; "
                f"{listed}"
            )
        return found[0]

    def width(self, name: str) -> int:
        """Numbers in a feature.

        Raises:
            RequestError: there is no such feature, or it is no row of numbers.
        """
        where = f"data.input={self.folder}"
        feature = self.features.get(name)
        rows = [
            key
            for key, value in self.features.items()
            if re.match(r"(float|int|uint|bool)", str(value.get("dtype")))
            and len(value.get("shape") or [1]) == 1
        ]
        if feature is None or name not in rows:
            usual = ("timestamp", "frame_index", "episode_index", "index", "task_index")
            others = ", ".join(key for key in rows if key not in usual) or "none"
            what = "is no row of numbers" if feature else "is not there"
            raise RequestError(f"{where}: feature {name!r} {what}; those of numbers are {others}")
        return int((feature.get("shape") or [1])[0])

    def grippers(self) -> list[int]:
        """Which numbers of the state are named as a gripper's."""
        return [i for i, name in enumerate(self.names(STATE)) if "gripper" in name.lower()]

    def names(self, feature: str) -> list[str]:
        """What the numbers of a feature are called; empty where they have no names."""
        names = (self.features.get(feature) or {}).get("names") or []
        if isinstance(names, dict):
            # Such as motors: [...], or x: 0, y: 1.
            first = next(iter(names.values()))
            names = first if isinstance(first, list) else list(names)
        return [str(name) for name in names] if isinstance(names, list) else []

    def path(self, template: str, **values: Any) -> str:
        """A path of the data set, by its template in the information.

        Raises:
            RequestError: it leads out of the data set.
        """
        try:
            path = str(self.info[template]).format(**values)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError) as e:
            raise RequestError(f"{self.folder / INFO}: {template} cannot be used: {e!r}") from None
        if path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise RequestError(f"{self.folder / INFO}: {template} leads out of the data set")
        return path


def is_lerobot(folder: str) -> bool:
    """Whether a folder holds a LeRobot data set."""
    try:
        return b'"codebase_version"' in (Path(folder) / INFO).read_bytes()
    except (OSError, ValueError):
        return False


def _version(text: Any) -> tuple[int, int]:
    found = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.\d+)?", str(text))
    if not found:
        raise ValueError(f"codebase_version is {text!r}")
    return int(found[1]), int(found[2])
