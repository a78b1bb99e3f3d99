"""The videos that a run has generated, with their records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from msgspec import Struct

from cosmos_hpc.errors import WorkError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files


class Sample(Struct, frozen=True):
    """A generated video.

    Attributes:
        path: of the mp4 file.
        record: what is known of it: ``clip``, ``sample``, ``weights``, ``source``, ``prompt``,
            ``frames``, ``condition_frames``, ``sampling``, ``checkpoint`` and more.
    """

    path: Path
    record: dict[str, Any]

    @property
    def clip(self) -> int:
        """Number of the clip that it continues."""
        return int(self.record["clip"])

    @property
    def by(self) -> str:
        """The weights that made it, in words."""
        if self.record["weights"] == "initial":
            return "before training"
        number = self.record["sample"]
        return f"post-trained, sample {number + 1}" if number else "post-trained"


class Samples(Sequence[Sample]):
    """The generated videos of a run, those of one clip next to each other, as a sequence.

    In a notebook they show themselves side by side.

    Args:
        samples: in any order.
        run: path of the run folder, where the true videos may lie.
    """

    def __init__(self, samples: Iterable[Sample], run: Path) -> None:
        self.run = run
        # The model before training after the trained one.
        self._all = sorted(
            samples, key=lambda s: (s.clip, s.record["weights"] == "initial", s.record["sample"])
        )

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Sample | Samples:
        found = self._all[index]
        return found if isinstance(found, Sample) else Samples(found, self.run)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"Samples of {len(self.clips())} clips: {[sample.path.name for sample in self]}"

    def clips(self) -> dict[int, list[Sample]]:
        """The samples of each clip, by its number."""
        found: dict[int, list[Sample]] = {}
        for sample in self:
            found.setdefault(sample.clip, []).append(sample)
        return found

    def truth(self, clip: int) -> Path:
        """Where the evaluation puts the true frames of a clip."""
        return self.run / "evaluation" / "videos" / f"{clip:04d}-truth.mp4"

    def tokenizer(self, clip: int) -> Path:
        """Where the evaluation puts the tokenizer's reconstruction of a clip's true frames."""
        return self.run / "evaluation" / "videos" / f"{clip:04d}-tokenizer.mp4"

    def _repr_html_(self) -> str:
        from cosmos_hpc.runs.display import samples_html

        return samples_html(self)


def read_samples(run: RunFolder) -> Samples:
    """The samples of a run; none before they are generated."""
    return Samples(_read(run.path / "generated"), run.path)


def _read(folder: Path) -> Iterator[Sample]:
    for path in folder.glob("*.json"):
        # Not a sample's: a marker, or damaged.
        with contextlib.suppress(WorkError, KeyError, TypeError, ValueError):
            record = files.read_json(path)
            if {"clip", "sample", "weights"} <= record.keys():
                yield Sample(folder / Path(record["video"]).name, record)
