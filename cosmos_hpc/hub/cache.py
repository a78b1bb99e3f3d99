"""Fetches published files from the Hub into its cache, after checking everything possible.

Only this package knows huggingface_hub, which is imported when it is needed: it takes a second.
Files go into the Hub's own cache, below HF_HOME, where its other tools find them as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from cosmos_hpc.errors import RequestError, explain_os_error
from cosmos_hpc.hub.errors import explain, gated, joined, status_of
from cosmos_hpc.hub.needs import HubFiles, matches
from cosmos_hpc.hub.transfer import HubFile, Snapshot, transfer
from cosmos_hpc.utils.html import table
from cosmos_hpc.utils.progress import gigabytes, say


def check_home(wanted: Sequence[HubFiles]) -> None:
    """Refuse to fetch where no folder is named for it.

    Raises:
        RequestError: something is wanted, and neither HF_HOME nor HF_HUB_CACHE is set.
    """
    if wanted:
        _cache_folder(wanted)


class Fetched(dict[str, Path]):
    """Folders by repository, which show themselves as text and in a notebook."""

    def __str__(self) -> str:
        lines = (f"{repository}  {folder}" for repository, folder in self.items())
        return "\n".join(lines) or "nothing of the Hub is needed"

    def _repr_html_(self) -> str:
        return table(("repository", "folder"), self.items()) if self else f"<p>{self}</p>"


def fetch_all(wanted: Iterable[HubFiles]) -> Fetched:
    """Fetch what the cache does not hold yet, after checking everything possible.

    Complete files are left alone, partial files are resumed. Where the Hub cannot
    be asked, what the cache holds is taken if nothing of it is evidently missing.

    Returns:
        The snapshot folder of each repository, ``datasets/owner/name`` for a data set; a file lies
        in it under its path.

    Raises:
        RequestError: HF_HOME is not set or cannot be written, the disk is too small, a repository
            is gated, unknown or lacks a file, a token was refused, or the Hub cannot be reached.
            Nothing was fetched.
        WorkError: the transfer broke off; the same call resumes it.
    """
    merged = _merged(wanted)
    if not merged:
        return Fetched()
    cache = _cache_folder(merged)
    with _quietly():
        found = _look_up_all(merged, cache)
        if any(snapshot.missing() for snapshot in found):
            _check_place(cache, sum(snapshot.bytes_missing() for snapshot in found))
            transfer(found)
    for snapshot in found:
        snapshot.remember()
    return Fetched({snapshot.name: snapshot.folder for snapshot in found})


def _merged(wanted: Iterable[HubFiles]) -> list[HubFiles]:
    """Each repository once."""
    patterns: dict[HubFiles, dict[str, None]] = {}
    for need in wanted:
        whole = replace(need, patterns=())
        patterns.setdefault(whole, {}).update(dict.fromkeys(need.patterns))
    return [replace(whole, patterns=tuple(chosen)) for whole, chosen in patterns.items()]


def _cache_folder(wanted: Sequence[HubFiles]) -> Path:
    """The Hub's cache, by the environment of now: its library reads that at import only."""
    hub, home = os.environ.get("HF_HUB_CACHE"), os.environ.get("HF_HOME")
    if not (hub or home):
        names = [need.repository for need in wanted]
        raise RequestError(
            f"HF_HOME is not set: set it to a folder on the shared file system, where "
            f"{joined(names)} {'is' if len(names) == 1 else 'are'} kept for all jobs"
        )
    folder = hub or os.path.join(str(home), "hub")
    return Path(os.path.expandvars(folder)).expanduser().absolute()


def _look_up_all(wanted: Sequence[HubFiles], cache: Path) -> list[Snapshot]:
    """What there is of every need, all of it allowed to be read."""
    from huggingface_hub.errors import GatedRepoError

    found: list[Snapshot] = []
    refused: list[str] = []
    for need in wanted:
        try:
            found.append(_look_up(need, cache))
        except GatedRepoError:
            refused.append(need.repository)
        except OSError as e:  # as all errors of the Hub's library are
            raise RequestError(explain(need.repository, e)) from None
    if refused:
        raise RequestError(gated(refused))
    return found


def _look_up(need: HubFiles, cache: Path) -> Snapshot:
    """What the Hub lists of a need; where it cannot be asked, what the cache holds of it."""
    storage = cache / f"{need.kind}s--{need.repository.replace('/', '--')}"
    try:
        return _ask(need, storage)
    except OSError as e:
        kept = _kept(need, storage)
        lack = _lack(need, kept) if kept else "is not in the cache"
        if kept and not lack:
            say(f"{explain(need.repository, e)}; taking what the cache holds")
            return kept
        if status_of(e) is not None:
            raise
        raise RequestError(
            f"{need.repository} {lack} below HF_HOME, and {explain(need.repository, e)}; run "
            f"this where there is a network, or copy the cache"
        ) from None


def _ask(need: HubFiles, storage: Path) -> Snapshot:
    """The files of a need as the Hub lists them, after asking for one that would be fetched.

    Raises:
        RequestError: the repository lacks a file.
        OSError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE")
    seconds = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().repo_info(
        need.repository,
        repo_type=need.kind,
        revision=need.revision,
        files_metadata=True,
        timeout=seconds,
    )
    listed = info.siblings or []
    there = dict.fromkeys(file.rfilename for file in listed)
    names: set[str] = set()
    for pattern in need.patterns:
        found = matches(pattern, there)
        if found is None:
            raise RequestError(
                f"{need.repository} lacks a file: there is no {pattern.replace('|', ' or ')}"
            )
        names.update(found)
    wanted = tuple(
        HubFile(
            file.rfilename,
            file.size or 0,
            file.lfs.sha256 if file.lfs else str(file.blob_id),
            file.lfs.sha256 if file.lfs else None,
        )
        for file in listed
        if file.rfilename in names
    )
    snapshot = Snapshot(need, storage, str(info.sha), wanted)
    for file in snapshot.missing()[:1]:
        # Gated repositories list their files to everybody, and give them to few.
        url = hf_hub_url(need.repository, file.path, repo_type=need.kind, revision=snapshot.commit)
        get_hf_file_metadata(url, timeout=seconds)
    return snapshot


def _kept(need: HubFiles, storage: Path) -> Snapshot | None:
    """The newest commit of the revision that the cache knows of."""
    try:
        commit = (storage / "refs" / need.revision).read_text().strip()
    except (FileNotFoundError, IsADirectoryError):
        commit = need.revision
        if not (storage / "snapshots" / commit).is_dir():
            return None
    return Snapshot(need, storage, commit)


def _lack(need: HubFiles, kept: Snapshot) -> str:
    """What the cache evidently lacks of a need, in words; empty where nothing shows."""
    paths = {p.relative_to(kept.folder).as_posix(): p for p in kept.folder.rglob("*")}
    # A link whose file is gone is not there.
    there = dict.fromkeys(name for name, path in paths.items() if path.is_file())
    for pattern in need.patterns:
        if matches(pattern, there) is None:
            return f"lacks {pattern.replace('|', ' or ')} in the cache"
    gone = [n for n, p in paths.items() if p.is_symlink() and not p.exists()]
    halves = any((kept.storage / "blobs").glob("*.incomplete"))
    if any("*" in p for p in need.patterns) and (halves or gone):
        return "is there only in part in the cache"
    return ""


def _check_place(cache: Path, wanted: int) -> None:
    """Refuse a cache that cannot be written, or has no room for this many more bytes."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as e:
        raise RequestError(explain_os_error(e, f"writing to the Hub's cache {cache}")) from None
    free = shutil.disk_usage(cache).free
    if free < wanted:
        raise RequestError(
            f"the files still to fetch take {gigabytes(wanted)} in {cache}, which has "
            f"{gigabytes(free)} free; free some space or set HF_HOME to another place"
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The Hub's library without bars and warnings: the lines of this module say it all."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled(logger.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        if bars:
            disable_progress_bars(logger.name)
        try:
            yield
        finally:
            logger.setLevel(level)
            if bars:
                enable_progress_bars(logger.name)
