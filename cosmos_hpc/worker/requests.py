"""What commands of the worker are asked for, and checked before torch is imported for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.data.tokens import Compression
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.checkpoints.places import ENDINGS, check_place
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import PathText, Section

#: Endings that somebody who wants a file would give.
_OTHER_FILES = {".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors", ".nemo", ".distcp"}


class SmallTokenizer(Section, frozen=True, kw_only=True):
    """Which tokenizer to write."""

    compression: Compression = (8, 16, 16)


class Conversion(Section, frozen=True, kw_only=True):
    """Settings of a conversion.

    Attributes:
        recipe: whose model the weights are of; None: the one whose sizes they have.
        dtype: of what is written; None: as stored, with adapters as the weights beside them.
        base: weights beside which adapters were trained; None: where they lay then.
    """

    recipe: str | None = None
    dtype: Literal["bfloat16", "float32"] | None = None
    base: PathText | None = None


def check_conversion(source: Path, target: Path, settings: Conversion) -> None:
    """Refuse a conversion that cannot be, whatever the weights are.

    Raises:
        RequestError: the target exists or has a name that it cannot have, the source or the base is
            nothing that weights could be in, or there is no such recipe.
    """
    _check_name(target)
    check_new(target)
    check_place(source)
    if settings.base:
        check_place(Path(settings.base))
    if settings.recipe is not None:
        load_recipe(settings.recipe)


def _check_name(target: Path) -> None:
    if target.suffix not in ENDINGS and target.suffix.lower() in _OTHER_FILES:
        raise RequestError(
            f"{target} ends in {target.suffix}; files end in {' or '.join(ENDINGS)}, and a "
            f"NeMo checkpoint is a folder, without such an ending"
        )
    if above := files.file_in_place_of(target.parent):
        raise RequestError(f"{target} cannot be made: {above} is not a folder")


def check_new(target: Path) -> None:
    """Refuse to replace what is there.

    Raises:
        RequestError: there is something.
    """
    if os.path.lexists(target):
        raise RequestError(f"{target} exists; remove it or choose another name")
