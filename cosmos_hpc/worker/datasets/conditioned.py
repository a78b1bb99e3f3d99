"""Training samples of models with text or actions, from the files of NVIDIA's guide."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmos_hpc.data.parts import FOLDERS
from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils import files
from cosmos_hpc.worker.datasets.samples import Epochs, conditioned_sample


def read_tensor(path: Path, *, mmap: bool = False) -> Tensor:
    """A tensor of a file.

    Raises:
        WorkError: the file is missing, damaged or holds something else.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise WorkError(f"{path} is gone; prepare the data again") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError) as e:
        reason = str(e).strip().partition("\n")[0]
        raise WorkError(f"{path} cannot be read: {reason}") from None
    if not isinstance(value, Tensor):
        raise WorkError(f"{path} holds a {type(value).__name__}, not a tensor")
    return value


class TextClips(Epochs):
    """Clips with the embedding of their prompt, from the files of NVIDIA's guide.

    A sample is that of :func:`conditioned_sample` with ``context``, bf16
    ``[text positions, context_width]``.

    Args:
        folder: holds ``PART_video_I.pt``, ``PART_prompt_I.pt`` and ``metadata.json``.
        part: ``train``, ``validation`` or ``test``.
        ids_per_clip: ids of a clip.
        sequence_length: inputs of a sample.
        length, seed, once: as for :class:`Epochs`.
        given: number of tokens at the beginning of a clip that carry no loss.

    Raises:
        WorkError: the folder has no ``metadata.json``; later, a file is not what it should be.
    """

    def __init__(
        self,
        folder: Path,
        part: str,
        ids_per_clip: int,
        sequence_length: int,
        length: int,
        seed: int = 0,
        once: bool = False,
        given: int = 0,
    ) -> None:
        super().__init__(sample_counts(folder)[part], length, seed, once)
        self._given = given
        self._prefix = str(folder / FOLDERS[part])
        self._ids_per_clip, self._sequence_length = ids_per_clip, sequence_length

    def _ids(self, item: int) -> Tensor:
        path = Path(f"{self._prefix}_video_{item}.pt")
        sequence = read_tensor(path)
        if sequence.is_floating_point() or len(sequence) != self._sequence_length + 1:
            raise WorkError(
                f"{path} holds {len(sequence)} of {sequence.dtype} where the recipe expects "
                f"{self._sequence_length + 1} integers"
            )
        return sequence[1 : self._ids_per_clip + 1].long()

    def predicted(self, item: int) -> np.ndarray:
        """Tokens of a clip without those that are given."""
        ids: np.ndarray = self._ids(item).numpy()[self._given :]
        return ids

    def sample(self, item: int) -> dict[str, Tensor]:
        """One clip and its prompt."""
        context = read_tensor(Path(f"{self._prefix}_prompt_{item}.pt"))
        sample = conditioned_sample(self._ids(item), self._sequence_length, self._given)
        return {**sample, "context": context}


def sample_counts(folder: Path) -> dict[str, int]:
    """Samples of each part in a folder of the guide's files.

    Raises:
        WorkError: it has no ``metadata.json``.
    """
    metadata = files.read_json(folder / "metadata.json")
    if metadata is None:
        raise WorkError(f"{folder} has no metadata.json: its finalize stage has not run")
    return {part: int(metadata[f"{name}_samples"]) for part, name in FOLDERS.items()}


class FramePairs(Epochs):
    """A frame, the next one and the action between them, from the files of NVIDIA's guide.

    A sample is that of :func:`conditioned_sample`, where the second frame is to be predicted, with
    ``action``, float32 ``[action_width]``. Rows of ``actions.pt`` that are NaN end a clip: no pair
    begins there.

    Args:
        folder: holds ``tokenized-frames.pt`` (integers ``[N, 1, rows, columns]``) and
            ``actions.pt`` (``[N, action_width]``).
        sequence_length: inputs of a sample.
        length, seed, once: as for :class:`Epochs`.

    Raises:
        WorkError: the files are missing or do not fit together.
    """

    def __init__(
        self,
        folder: Path,
        sequence_length: int,
        length: int,
        seed: int = 0,
        once: bool = False,
    ) -> None:
        # Mapped: the ranks of a node share one copy.
        self._frames = read_tensor(folder / "tokenized-frames.pt", mmap=True)
        self._actions = read_tensor(folder / "actions.pt").float()
        self._sequence_length = sequence_length
        if self._frames.is_floating_point() or len(self._frames) != len(self._actions):
            raise WorkError(
                f"{folder}: {len(self._frames)} frames of {self._frames.dtype} do not go with "
                f"{len(self._actions)} actions"
            )
        self._starts = pair_starts(self._actions)
        super().__init__(len(self._starts), length, seed, once)

    def predicted(self, item: int) -> np.ndarray:
        """Tokens of the second frame."""
        ids: np.ndarray = self._frames[self._starts[item] + 1].flatten().numpy()
        return ids

    def sample(self, item: int) -> dict[str, Tensor]:
        """One pair."""
        start = int(self._starts[item])
        ids = self._frames[start : start + 2].flatten().long()
        sample = conditioned_sample(ids, self._sequence_length, given=len(ids) // 2)
        return {**sample, "action": self._actions[start].clone()}


def pair_starts(actions: Tensor) -> Tensor:
    """Rows that begin a pair, of actions ``[N, width]``: all but those that are NaN."""
    return (~actions.isnan().any(1)).nonzero()[:, 0]
