"""The download stage: what the workers read, brought to where they can."""

from __future__ import annotations

import os
from pathlib import Path

from cosmos_hpc import files
from cosmos_hpc.errors import WorkError
from cosmos_hpc.progress import say
from cosmos_hpc.recipes import SMALL_TOKENIZER, Recipe
from cosmos_hpc.runs import RunFolder

TOKENIZER_FILES = ("encoder.jit", "decoder.jit")


def download(run: RunFolder, recipe: Recipe) -> None:
    """Fetch or write the tokenizer, and note in the run where it lies.

    Raises:
        WorkError: it cannot be had; the message says what to do.
    """
    wanted = recipe.data.tokenizer
    if wanted == SMALL_TOKENIZER:
        from cosmos_hpc.worker.small_tokenizer import write_small_tokenizer

        write_small_tokenizer(run.tokenizer, recipe.data.compression)
        # Relative, so that the run folder can be moved.
        folder = "."
        say("wrote the small tokenizer")
    elif Path(wanted).is_dir():
        folder = str(Path(wanted).resolve())
        missing = [name for name in TOKENIZER_FILES if not (Path(folder) / name).is_file()]
        if missing:
            raise WorkError(f"data.tokenizer={wanted} has no {' and no '.join(missing)}")
        say(f"the tokenizer is {folder}")
    else:
        folder = str(fetch_from_hub(wanted, TOKENIZER_FILES))
        say(f"the tokenizer {wanted} is in {folder}")
    files.write_json(run.marker("download"), {"tokenizer": wanted, "folder": folder})


def tokenizer_folder(run: RunFolder) -> Path:
    """Where the download stage put ``encoder.jit`` and ``decoder.jit``.

    Raises:
        WorkError: the stage has not run.
    """
    marker = files.read_json(run.marker("download"))
    if marker is None:
        raise WorkError(f"run {run.name} has no tokenizer yet: its download stage has not run")
    return run.tokenizer / marker["folder"]


def fetch_from_hub(repository: str, names: tuple[str, ...]) -> Path:
    """Files of a Hub repository, from its cache below HF_HOME where they are there already.

    Returns:
        The folder that holds them.

    Raises:
        WorkError: HF_HOME is not set, no access, or no network; says which and what to do.
    """
    if not (os.environ.get("HF_HOME") or os.environ.get("HF_HUB_CACHE")):
        raise WorkError(
            f"HF_HOME is not set: set it to a folder on the shared file system, where "
            f"{repository} is kept for all jobs"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        paths = [Path(hf_hub_download(repository, name)) for name in names]
    except GatedRepoError:
        raise WorkError(
            f"{repository} is gated: accept its licence on its Hub page and set HF_TOKEN"
        ) from None
    except LocalEntryNotFoundError:
        raise WorkError(
            f"{repository} is not in the cache below HF_HOME, and the Hub cannot be reached; run "
            f"this stage where there is a network, or copy the cache"
        ) from None
    except RepositoryNotFoundError:
        raise WorkError(
            f"there is no repository {repository} on the Hub, or HF_TOKEN may not see it"
        ) from None
    except EntryNotFoundError as e:
        raise WorkError(f"{repository} lacks a file: {str(e).splitlines()[-1]}") from None
    return paths[0].parent
