"""Published files on the Hub: what a recipe needs of them, checked first and then fetched.

The only module that knows huggingface_hub, which is imported when it is needed: it takes a second.
Files go into the Hub's own cache, below HF_HOME, where its other tools find them as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cosmos_hpc import files
from cosmos_hpc.errors import RequestError, WorkError, explain_os_error
from cosmos_hpc.progress import ByteProgress, gigabytes, say
from cosmos_hpc.recipes import SMALL_TOKENIZER, Recipe

TOKENIZER_FILES = ("encoder.jit", "decoder.jit")
#: Folder of NVIDIA's repositories that holds the NeMo checkpoint.
WEIGHTS_FOLDER = "nemo"

#: How often one file is tried when the connection drops, and the seconds between.
_TRIES, _PAUSE = 5, 3.0
#: Seconds between progress lines, and between looks at the disk.
_EVERY, _LOOK = 10.0, 1.0


@dataclass(frozen=True)
class HubFiles:
    """Some files of one Hub repository.

    Attributes:
        repository: ``owner/name``.
        patterns: their paths in the repository; a ``*`` stands for any text, slashes included.
    """

    repository: str
    patterns: tuple[str, ...]


def is_hub_name(text: str) -> bool:
    """Whether a text names a Hub repository: ``owner/name``, and nothing of that path exists."""
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    named = re.fullmatch(f"{part}/{part}", text) and "--" not in text and ".." not in text
    return bool(named) and not text.endswith(".git") and not Path(text).exists()


def needs(recipe: Recipe) -> list[HubFiles]:
    """What a recipe takes from the Hub: the tokenizer, and the weights that training starts from.

    Empty for a recipe of local files.
    """
    tokenizer, weights = recipe.data.tokenizer, recipe.train.init_from
    found = []
    if tokenizer != SMALL_TOKENIZER and is_hub_name(tokenizer):
        found.append(HubFiles(tokenizer, TOKENIZER_FILES))
    if weights and is_hub_name(weights):
        found.append(HubFiles(weights, (f"{WEIGHTS_FOLDER}/*",)))
    return found


def check_home(wanted: Sequence[HubFiles]) -> None:
    """Refuse to fetch where no folder is named for it.

    Raises:
        RequestError: something is wanted, and neither HF_HOME nor HF_HUB_CACHE is set.
    """
    if wanted:
        _cache_folder(wanted)


def fetch(need: HubFiles) -> Path:
    """The folder with the files of one need; see :func:`fetch_all`."""
    return fetch_all([need])[need.repository]


def fetch_all(wanted: Iterable[HubFiles]) -> dict[str, Path]:
    """Fetch what the cache does not hold yet, after everything that can be checked before.

    Files that are whole are left alone, half files go on where they stopped. Where the Hub cannot
    be asked, what the cache holds is taken if nothing of it is evidently missing.

    Returns:
        The snapshot folder of each repository; a file lies in it under its path.

    Raises:
        RequestError: HF_HOME is not set or cannot be written, the disk is too small, a repository
            is gated, unknown or lacks a file, a token was refused, or the Hub cannot be reached.
            Nothing was fetched.
        WorkError: the transfer broke off; the same call goes on from there.
    """
    merged = _merged(wanted)
    if not merged:
        return {}
    cache = _cache_folder(merged)
    with _quietly():
        found = _look_up_all(merged, cache)
        if any(snapshot.missing() for snapshot in found):
            _check_place(cache, sum(snapshot.bytes_missing() for snapshot in found))
            _transfer(found)
    for snapshot in found:
        snapshot.remember()
    return {snapshot.repository: snapshot.folder for snapshot in found}


@dataclass(frozen=True)
class _File:
    """A file on the Hub: its path, its bytes, its name in the cache, and its sha256 if known."""

    path: str
    size: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class _Snapshot:
    """One commit of a repository in the cache, and the files that are wanted of it."""

    repository: str
    storage: Path
    commit: str
    files: tuple[_File, ...] = ()

    @property
    def folder(self) -> Path:
        return self.storage / "snapshots" / self.commit

    def missing(self) -> list[_File]:
        return [file for file in self.files if not (self.folder / file.path).exists()]

    def half(self, file: _File) -> Path:
        """Where the beginning of a file waits for the rest."""
        return self.storage / "blobs" / f"{file.blob}.incomplete"

    def bytes_here(self, file: _File) -> int:
        # In this order: a half file that is renamed meanwhile is found under its next name.
        for path in (
            self.half(file),
            self.storage / "blobs" / file.blob,
            self.folder / file.path,
        ):
            with contextlib.suppress(FileNotFoundError):
                return min(path.stat().st_size, file.size)
        return 0

    def bytes_missing(self) -> int:
        return sum(file.size - self.bytes_here(file) for file in self.missing())

    def remember(self) -> None:
        """Note the commit as the newest, for those who ask without a network.

        Done last, so that what is noted is whole.
        """
        ref = self.storage / "refs" / "main"
        # A cache that others filled may be read-only.
        with contextlib.suppress(OSError):
            if not ref.exists() or ref.read_text().strip() != self.commit:
                files.write_atomic(ref, self.commit)


def _merged(wanted: Iterable[HubFiles]) -> list[HubFiles]:
    """Each repository once."""
    patterns: dict[str, dict[str, None]] = {}
    for need in wanted:
        patterns.setdefault(need.repository, {}).update(dict.fromkeys(need.patterns))
    return [HubFiles(repository, tuple(chosen)) for repository, chosen in patterns.items()]


def _cache_folder(wanted: Sequence[HubFiles]) -> Path:
    """The Hub's cache, by the environment of now: its library reads that at import only."""
    hub, home = os.environ.get("HF_HUB_CACHE"), os.environ.get("HF_HOME")
    if not (hub or home):
        names = [need.repository for need in wanted]
        raise RequestError(
            f"HF_HOME is not set: set it to a folder on the shared file system, where "
            f"{_and(names)} {'is' if len(names) == 1 else 'are'} kept for all jobs"
        )
    folder = hub or os.path.join(str(home), "hub")
    return Path(os.path.expandvars(folder)).expanduser().absolute()


def _look_up_all(wanted: Sequence[HubFiles], cache: Path) -> list[_Snapshot]:
    """What there is of every need, all of it allowed to be read."""
    from huggingface_hub.errors import GatedRepoError

    found: list[_Snapshot] = []
    gated: list[str] = []
    for need in wanted:
        try:
            found.append(_look_up(need, cache))
        except GatedRepoError:
            gated.append(need.repository)
        except OSError as e:  # as all errors of the Hub's library are
            raise RequestError(_explain(need.repository, e)) from None
    if gated:
        raise RequestError(_gated(gated))
    return found


def _look_up(need: HubFiles, cache: Path) -> _Snapshot:
    """What the Hub lists of a need; where it cannot be asked, what the cache holds of it."""
    storage = cache / f"models--{need.repository.replace('/', '--')}"
    try:
        return _ask(need, storage)
    except OSError as e:
        kept = _kept(need.repository, storage)
        lack = _lack(need, kept) if kept else "is not in the cache"
        if kept and not lack:
            say(f"{_explain(need.repository, e)}; taking what the cache holds")
            return kept
        if _status(e) is not None:
            raise
        raise RequestError(
            f"{need.repository} {lack} below HF_HOME, and {_explain(need.repository, e)}; run "
            f"this where there is a network, or copy the cache"
        ) from None


def _ask(need: HubFiles, storage: Path) -> _Snapshot:
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
    info = HfApi().model_info(
        need.repository, revision="main", files_metadata=True, timeout=seconds
    )
    listed = info.siblings or []
    for pattern in need.patterns:
        if not any(fnmatchcase(file.rfilename, pattern) for file in listed):
            raise RequestError(f"{need.repository} lacks a file: there is no {pattern}")
    wanted = tuple(
        _File(
            file.rfilename,
            file.size or 0,
            file.lfs.sha256 if file.lfs else str(file.blob_id),
            file.lfs.sha256 if file.lfs else None,
        )
        for file in listed
        if any(fnmatchcase(file.rfilename, pattern) for pattern in need.patterns)
    )
    snapshot = _Snapshot(need.repository, storage, str(info.sha), wanted)
    for file in snapshot.missing()[:1]:
        # Gated repositories list their files to everybody, and give them to few.
        url = hf_hub_url(need.repository, file.path, revision=snapshot.commit)
        get_hf_file_metadata(url, timeout=seconds)
    return snapshot


def _kept(repository: str, storage: Path) -> _Snapshot | None:
    """The newest commit that the cache knows of."""
    try:
        commit = (storage / "refs" / "main").read_text().strip()
    except FileNotFoundError:
        return None
    return _Snapshot(repository, storage, commit)


def _lack(need: HubFiles, kept: _Snapshot) -> str:
    """What the cache evidently lacks of a need, in words; empty where nothing shows."""
    paths = {p.relative_to(kept.folder).as_posix(): p for p in kept.folder.rglob("*")}
    # A link whose file is gone is not there.
    there = [name for name, path in paths.items() if path.is_file()]
    for pattern in need.patterns:
        if not any(fnmatchcase(name, pattern) for name in there):
            return f"lacks {pattern} in the cache"
    gone = [n for n, p in paths.items() if p.is_symlink() and not p.exists()]
    halves = any((kept.storage / "blobs").glob("*.incomplete"))
    if any("*" in p for p in need.patterns) and (halves or gone):
        return "is there only in part in the cache"
    return ""


def _check_place(cache: Path, wanted: int) -> None:
    """Refuse a cache that cannot be written, or cannot hold so many bytes more."""
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


def _transfer(found: Sequence[_Snapshot]) -> None:
    """Fetch what is missing, one file after the other, with lines about how far it is."""
    work = [(snapshot, file) for snapshot in found for file in snapshot.missing()]
    for snapshot in found:
        if missing := snapshot.missing():
            count = f"{len(missing)} file{'s' * (len(missing) > 1)}"
            say(f"{snapshot.repository}: {count}, {gigabytes(snapshot.bytes_missing())} to fetch")

    def bytes_here() -> int:
        return sum(snapshot.bytes_here(file) for snapshot, file in work)

    total = sum(file.size for _, file in work)
    progress = ByteProgress("fetched", total, bytes_here(), every=_EVERY)
    with _watch(progress, bytes_here):
        for snapshot, file in work:
            _fetch_file(snapshot, file)
    progress.update(total)


@contextlib.contextmanager
def _watch(progress: ByteProgress, bytes_here: Callable[[], int]) -> Iterator[None]:
    """Look at the disk now and then: the Hub's library tells nobody how far a file is."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK):
            # The line at the end comes when the last file is checked as well.
            if (done := bytes_here()) < progress.total:
                progress.update(done)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _fetch_file(snapshot: _Snapshot, file: _File) -> None:
    """Fetch one file, through dropped connections, and compare it with the Hub's checksum."""
    half = snapshot.half(file)
    if half.exists() and half.stat().st_size > file.size:
        half.unlink()  # of something else; nothing could be added to it
    for attempt in range(1, _TRIES + 1):
        try:
            _fetch_rest(snapshot, file)
            break
        except OSError as e:
            if e.errno is not None:
                raise  # of the disk, not of the Hub
            status = _status(e)
            if status in (401, 403, 404, 416):
                raise WorkError(_explain(snapshot.repository, e)) from None
            if attempt == _TRIES:
                raise WorkError(
                    f"the connection to the Hub dropped in {snapshot.repository}/{file.path}; "
                    f"the same command goes on from here"
                ) from None
            say(f"the connection dropped in {file.path}, going on")
            time.sleep(_PAUSE)
    _compare(snapshot, file)


def _fetch_rest(snapshot: _Snapshot, file: _File) -> None:
    from huggingface_hub import hf_hub_download

    with _plain_http(file.size):
        hf_hub_download(
            snapshot.repository,
            file.path,
            revision=snapshot.commit,
            cache_dir=snapshot.storage.parent,
        )


@contextlib.contextmanager
def _plain_http(size: int) -> Iterator[None]:
    """The one way that goes on with half a file; Xet, for those too large for it, does not."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET, constants.HF_HUB_ENABLE_HF_TRANSFER
    constants.HF_HUB_DISABLE_XET = before[0] or size <= constants.MAX_HTTP_DOWNLOAD_SIZE
    constants.HF_HUB_ENABLE_HF_TRANSFER = False
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET, constants.HF_HUB_ENABLE_HF_TRANSFER = before


def _compare(snapshot: _Snapshot, file: _File) -> None:
    """Throw away a file that is not what the Hub lists: a later call would take it as whole."""
    path = snapshot.folder / file.path
    if file.sha256 and files.sha256(path) != file.sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise WorkError(
            f"{snapshot.repository}/{file.path} came damaged and was deleted; the same command "
            f"fetches it again"
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


def _explain(repository: str, error: OSError) -> str:
    """Why the Hub gave nothing. Of the error's own text nothing: it may hold signed addresses."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    status = _status(error)
    if isinstance(error, GatedRepoError):
        return _gated([repository])
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repository} on the Hub, or HF_TOKEN may not see it"
    if status == 401:
        what = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the stored login"
        return f"{what} was refused by the Hub: it is wrong or has expired"
    if status == 403:
        return f"HF_TOKEN may not read {repository}; give it that permission on the Hub"
    if isinstance(error, EntryNotFoundError) and status:
        return f"{repository} lacks a file that it lists; try again later"
    if status:
        return f"the Hub answered {status} for {repository}; try again later"
    offline = isinstance(error, OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else type(error).__name__
    return f"the Hub cannot be reached ({why})"


def _gated(repositories: Sequence[str]) -> str:
    from huggingface_hub import get_token

    one = len(repositories) == 1
    accept = f"accept {'its licence on its Hub page' if one else 'the licence on each Hub page'}"
    names = f"{_and(repositories)} {'is' if one else 'are'} gated"
    if get_token():
        return f"{names}: {accept} with the account that HF_TOKEN or the stored login belongs to"
    return f"{names}: {accept} and set HF_TOKEN"


def _status(error: BaseException) -> int | None:
    """Status of the Hub's answer; None where there was none."""
    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
