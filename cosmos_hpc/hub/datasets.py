"""Data sets on the Hub, ``hf://datasets/OWNER/NAME[@REVISION]``: in LeRobot's format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from cosmos_hpc.config.recipes import Recipe, list_input
from cosmos_hpc.data.lerobot.info import META
from cosmos_hpc.data.wanted import HUB_DATASETS, Row
from cosmos_hpc.errors import RequestError
from cosmos_hpc.hub.cache import fetch_all
from cosmos_hpc.hub.needs import HubFiles, is_repository

#: Keys of rows that name a file of the data set; the second holds actions.
_FILES = ("path", "data")


def dataset_files(source: str, patterns: Iterable[str], commit: str | None = None) -> HubFiles:
    """Some files of a data set that ``data.input`` names.

    Args:
        source: ``hf://datasets/OWNER/NAME[@REVISION]``.
        patterns: as of :class:`~cosmos_hpc.hub.needs.HubFiles`.
        commit: takes the place of the revision.

    Raises:
        RequestError: it is no such name.
    """
    name, at, revision = source.removeprefix(HUB_DATASETS).partition("@")
    if not is_repository(name) or (at and not revision):
        raise RequestError(
            f"data.input={source} names no data set; write {HUB_DATASETS}OWNER/NAME, with "
            f"@REVISION after it where it is not main"
        )
    return HubFiles(name, tuple(patterns), "dataset", commit or revision or "main")


def located(recipe: Recipe) -> Recipe:
    """The recipe with its input on this machine: of a data set on the Hub, what a plan reads of it.

    Its videos are fetched by the download stage, into the same folder.

    Raises:
        RequestError: as :func:`~cosmos_hpc.hub.cache.fetch_all`.
    """
    source = recipe.data.input
    if source is None or not source.startswith(HUB_DATASETS):
        return recipe
    (folder,) = fetch_all([dataset_files(source, META)]).values()
    data = replace(recipe.data, input=str(folder))
    return replace(recipe, data=data)


def files_of_rows(recipe: Recipe, root: Path, rows: Iterable[Row]) -> list[HubFiles]:
    """The files that a recipe's rows name in a data set on the Hub; none for another input.

    Files that the data set lacks are no error here: the workers list their videos as failed.

    Args:
        recipe: with its ``data.input`` as a person gave it.
        root: the snapshot of the data set in the Hub's cache, whose commit was planned.
        rows: with ``path`` and ``data`` relative to it.
    """
    source = recipe.data.input or ""
    if not source.startswith(HUB_DATASETS):
        return []
    keys = _FILES if "model.action_width" in recipe.kind.settings else _FILES[:1]
    names = dict.fromkeys(row[key] for row in rows for key in keys if row.get(key))
    return [dataset_files(source, [*META, *(f"{name}|" for name in names)], commit=root.name)]


def recipe_files(recipe: Recipe) -> list[HubFiles]:
    """All files that a recipe reads from a data set on the Hub, before it has a run."""
    there = located(recipe)
    if there is recipe:
        return []
    root, rows = list_input(there)
    return files_of_rows(recipe, Path(root), rows)
