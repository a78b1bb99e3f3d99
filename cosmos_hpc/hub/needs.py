"""What a recipe needs from the Hub, and which part of it is on this machine already."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from msgspec import Struct

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.sections import SMALL_TEXT_ENCODER, SMALL_TOKENIZER
from cosmos_hpc.errors import RequestError, explain_os_error
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import setting

TOKENIZER_FILES = ("encoder.jit", "decoder.jit")
#: Folder of NVIDIA's repositories that holds the NeMo checkpoint.
WEIGHTS_FOLDER = "nemo"
#: What transformers reads of a T5 model. Weights may be in one file or in several with an index.
TEXT_ENCODER_FILES = (
    "config.json",
    "tokenizer.json|spiece.model|tokenizer_config.json",
    "tokenizer_config.json|",
    "model*.safetensors*|pytorch_model*.bin*",
)


class HubFiles(Struct, frozen=True):
    """Some files of one Hub repository.

    Attributes:
        repository: ``owner/name``.
        kind: ``model`` or ``dataset``.
        revision: a branch, a tag or a commit.
        patterns: their paths in the repository; a ``*`` stands for any text, slashes included.
            Of several, with ``|`` between them, the first that is there counts; where the last is
            empty, none need be.
    """

    repository: str
    patterns: tuple[str, ...]
    kind: str = "model"
    revision: str = "main"


class Source(Struct, frozen=True):
    """A setting that names files on this machine, or a repository on the Hub.

    Attributes:
        setting: of the recipe.
        patterns: what is taken of a repository, as :class:`HubFiles` says it.
        built_in: a name that stands for what the package writes itself.
        may_be_file: whether it may be a file, instead of a folder.
        otherwise: ends the sentence about what is neither: what else a person may give.
    """

    setting: str
    patterns: tuple[str, ...]
    built_in: str | None
    may_be_file: bool
    otherwise: str

    def value(self, recipe: Recipe) -> str | None:
        """The value in a recipe; None if it is not set or names something built in."""
        value = setting(recipe, self.setting)
        return None if value == self.built_in else value

    def is_here(self, value: str) -> bool:
        """Whether it is on this machine."""
        return Path(value).exists() if self.may_be_file else Path(value).is_dir()


#: In the order in which they are fetched.
SOURCES = (
    Source("data.tokenizer", TOKENIZER_FILES, SMALL_TOKENIZER, False, f", nor {SMALL_TOKENIZER!r}"),
    Source(
        "data.text_encoder",
        TEXT_ENCODER_FILES,
        SMALL_TEXT_ENCODER,
        False,
        f", nor {SMALL_TEXT_ENCODER!r}",
    ),
    Source(
        "train.init_from",
        (f"{WEIGHTS_FOLDER}/*",),
        None,
        True,
        "; give one of them, or null for random weights",
    ),
)

#: The settings that may name a repository.
SETTINGS = frozenset(source.setting for source in SOURCES)


def is_hub_name(text: str) -> bool:
    """Whether a text names a Hub repository: ``owner/name``, and nothing of that path exists."""
    return is_repository(text) and not Path(text).exists()


def is_repository(text: str) -> bool:
    """Whether the Hub could have a repository of that name."""
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    named = re.fullmatch(f"{part}/{part}", text) and "--" not in text and ".." not in text
    return bool(named) and not text.endswith(".git")


def check_sources(recipe: Recipe) -> None:
    """Refuse what is neither on this machine nor a name on the Hub.

    Raises:
        RequestError: says which setting, or what a folder lacks.
    """
    for source in SOURCES:
        value = source.value(recipe)
        if value and source.is_here(value) and not source.may_be_file:
            check_folder(f"{source.setting}={value}", Path(value), source.patterns)
        if not value or source.is_here(value) or is_hub_name(value):
            continue
        what = "a file or folder on this machine" if source.may_be_file else "a folder"
        raise RequestError(
            f"{source.setting}={value} is neither {what}, nor a Hub repository (owner/name)"
            f"{source.otherwise}"
        )


def check_folder(where: str, folder: Path, patterns: Iterable[str]) -> None:
    """Refuse a folder that lacks files, or is not there.

    Args:
        where: names the folder in the error.
        folder: that the patterns are relative to.
        patterns: see :class:`HubFiles`.

    Raises:
        RequestError: says what it lacks.
    """
    names = files.names_in(folder)
    lacks = [pattern for pattern in patterns if matches(pattern, names) is None]
    if lacks:
        raise RequestError(f"{where} has no {' and no '.join(lacks).replace('|', ' or ')}")


def folders(recipe: Recipe) -> dict[str, str]:
    """The Hub's folders that are set: absolute, and made where something is to be fetched.

    Returns:
        The folder of each environment variable, those that are there.

    Raises:
        RequestError: one cannot be made.
    """
    found = {}
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        if not (value := os.environ.get(name)):
            continue
        folder = Path(os.path.expandvars(value)).expanduser().absolute()
        if needs(recipe):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise RequestError(explain_os_error(e, f"making {name}")) from None
        if folder.is_dir():
            found[name] = str(folder)
    return found


def needs(recipe: Recipe) -> list[HubFiles]:
    """What a recipe needs from the Hub: tokenizer, text encoder, and weights to start from.

    Empty for a recipe of local files.
    """
    named = [(source.value(recipe), source.patterns) for source in SOURCES]
    return [HubFiles(value, patterns) for value, patterns in named if value and is_hub_name(value)]


def matches(pattern: str, names: Iterable[str]) -> list[str] | None:
    """Which of ``names`` a pattern of :class:`HubFiles` means; None where it lacks one."""
    there = names if isinstance(names, dict) else dict.fromkeys(names)
    for alternative in pattern.split("|"):
        if "*" in alternative:
            found = [name for name in there if fnmatchcase(name, alternative)]
        else:
            found = [alternative] if alternative in there else []
        if found or not alternative:
            return found
    return None
