"""Files on their way from the Hub into its cache: what is there, and fetching what is not."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from cosmos_hpc.errors import WorkError
from cosmos_hpc.hub.errors import explain, status_of
from cosmos_hpc.hub.needs import HubFiles
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import ByteProgress, count_of, gigabytes, say

#: How often one file is tried when the connection drops, and the seconds between.
_TRIES, _PAUSE = 5, 3.0
#: Seconds between progress lines, and between looks at the disk.
_EVERY, _LOOK = 10.0, 1.0


class HubFile(Struct, frozen=True):
    """A file on the Hub: its path, its bytes, its name in the cache, and its sha256 if known."""

    path: str
    size: int
    blob: str
    sha256: str | None


class Snapshot(Struct, frozen=True):
    """One commit of a repository in the cache, and the files that are wanted of it."""

    need: HubFiles
    storage: Path
    commit: str
    files: tuple[HubFile, ...] = ()

    @property
    def repository(self) -> str:
        """``owner/name``."""
        return self.need.repository

    @property
    def name(self) -> str:
        """Distinguishes a data set from a model of the same name."""
        return ("datasets/" if self.need.kind == "dataset" else "") + self.repository

    @property
    def folder(self) -> Path:
        """Where the files lie under their paths."""
        return self.storage / "snapshots" / self.commit

    def missing(self) -> list[HubFile]:
        """Files that are missing or incomplete."""
        return [file for file in self.files if not (self.folder / file.path).exists()]

    def half(self, file: HubFile) -> Path:
        """Path of a partly fetched file."""
        return self.storage / "blobs" / f"{file.blob}.incomplete"

    def bytes_here(self, file: HubFile) -> int:
        """Bytes of a file that are there, complete or not."""
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
        """Bytes that are still to be fetched."""
        return sum(file.size - self.bytes_here(file) for file in self.missing())

    def remember(self) -> None:
        """Note the commit as the newest, for those who ask without a network.

        Done last, so that only complete files are noted.
        """
        if self.need.revision == self.commit:
            return
        ref = self.storage / "refs" / self.need.revision
        # A cache that others filled may be read-only.
        with contextlib.suppress(OSError):
            if not ref.exists() or ref.read_text().strip() != self.commit:
                files.write_atomic(ref, self.commit)


def transfer(found: Sequence[Snapshot]) -> None:
    """Fetch missing files one after the other, with lines of progress."""
    work = [(snapshot, file) for snapshot in found for file in snapshot.missing()]
    for snapshot in found:
        if missing := snapshot.missing():
            count = count_of(len(missing), "file")
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


def _fetch_file(snapshot: Snapshot, file: HubFile) -> None:
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
            status = status_of(e)
            if status in (401, 403, 404, 416):
                raise WorkError(explain(snapshot.repository, e)) from None
            if attempt == _TRIES:
                raise WorkError(
                    f"the connection to the Hub dropped in {snapshot.repository}/{file.path}; "
                    f"the same command resumes from here"
                ) from None
            say(f"the connection dropped in {file.path}, resuming")
            time.sleep(_PAUSE)
    _compare(snapshot, file)


def _fetch_rest(snapshot: Snapshot, file: HubFile) -> None:
    from huggingface_hub import hf_hub_download

    with _plain_http(file.size):
        hf_hub_download(
            snapshot.repository,
            file.path,
            repo_type=snapshot.need.kind,
            revision=snapshot.commit,
            cache_dir=snapshot.storage.parent,
        )


@contextlib.contextmanager
def _plain_http(size: int) -> Iterator[None]:
    """The one way that resumes a partial file; Xet, for those too large for it, does not."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET, constants.HF_HUB_ENABLE_HF_TRANSFER
    constants.HF_HUB_DISABLE_XET = before[0] or size <= constants.MAX_HTTP_DOWNLOAD_SIZE
    constants.HF_HUB_ENABLE_HF_TRANSFER = False
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET, constants.HF_HUB_ENABLE_HF_TRANSFER = before


def _compare(snapshot: Snapshot, file: HubFile) -> None:
    """Throw away a file that is not what the Hub lists: a later call would take it as complete."""
    path = snapshot.folder / file.path
    if file.sha256 and files.sha256(path) != file.sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise WorkError(
            f"{snapshot.repository}/{file.path} came damaged and was deleted; the same command "
            f"fetches it again"
        )
