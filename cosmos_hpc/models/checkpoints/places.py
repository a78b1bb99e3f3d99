"""What can be said of a place for weights without reading them, and so without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cosmos_hpc.errors import RequestError

#: Endings of published weights in one file.
ENDINGS = (".pt", ".safetensors")


def check_place(path: Path) -> None:
    """Refuse what cannot be weights in any form, whatever it holds.

    Raises:
        RequestError: there is nothing, it is a run, or a file of another kind; or it may not be
            looked at.
    """
    with readable(path):
        if (path / "run.json").is_file():
            raise RequestError(
                f"{path} is a run; name one of its checkpoints, in {path / 'train' / 'checkpoints'}"
            )
        if path.is_dir():
            return
        if not path.exists():
            raise RequestError(f"there is no {path}")
        if path.suffix not in ENDINGS:
            raise RequestError(f"{path} is neither a .pt nor a .safetensors file, nor a folder")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say of what may not be read where it is."""
    try:
        yield
    except PermissionError as e:
        raise RequestError(f"cannot read {e.filename or path}: permission denied") from None
