"""Fixtures that several tests share: videos, and one finished run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cosmos_hpc.data.videos import list_video_files
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from tests.fake_hub import FakeHub

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

REPOSITORY = Path(__file__).resolve().parents[1]

# Before torch is imported: threads that spin while they wait slow each other down many times where
# tests share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HAS_GPU = Path("/dev/nvidia0").exists()

# Before Triton is imported: without a GPU its kernels are interpreted.
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Commands that tests start keep their bytecode, as those of users do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

#: The development extra brings one.
SHELLCHECK = str(Path(sys.executable).parent / "shellcheck")

#: Planted where a secret would be; must turn up nowhere.
CANARIES = {"HF_TOKEN": "hf_canary5e1f", "WANDB_API_KEY": "c0ffee" * 6 + "cafe"}

#: Files that take longest, in that order. They begin first, so that the processes that share the
#: tests end at about the same time.
LONGEST = (
    "test_end_to_end.py",
    "test_demo.py",
    "slurm/test_interruptions.py",
    "test_tasks_end_to_end.py",
    "backends/test_docker.py",
    "slurm/test_nemo_run.py",
    "slurm/test_submit.py",
    "test_nemo_run.py",
    "slurm/test_status.py",
    "worker/training/test_context_parallel.py",
    "worker/training/test_wandb.py",
    "worker/training/test_distributed.py",
    "slurm/test_sites.py",
    "test_notebooks.py",
    "worker/stages/test_preprocess.py",
    "slurm/test_resuming.py",
    "test_sweeps.py",
    "models/checkpoints/test_published.py",
    "slurm/test_profiles.py",
    "slurm/test_sweeps.py",
    "worker/training/test_freeze.py",
    "worker/datasets/test_lerobot.py",
    "worker/training/test_nemo.py",
    "worker/training/test_lora.py",
    "slurm/test_old_runs.py",
    "worker/test_convert.py",
    "backends/test_local.py",
    "slurm/test_new_stage.py",
    "runs/test_old_runs.py",
)

# The processes that share the tests share the cores as well: threads of torch that wait for each
# other, while another process has the core, cost many times what they save. Read by torch when it
# is imported, here and in the commands that tests start.
_SHARE = len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _SHARE)))


def pytest_configure() -> None:
    """Let commands be interrupted: what a shell starts in the background ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; pytest-xdist hands files out in this order."""
    places = {REPOSITORY / "tests" / name: place for place, name in enumerate(LONGEST)}
    if gone := [str(path) for path in places if not path.is_file()]:
        raise pytest.UsageError(f"LONGEST in tests/conftest.py names no file: {', '.join(gone)}")
    items.sort(key=lambda item: places.get(item.path, len(places)))


def real_data(name: str) -> Path | None:
    """A folder of real data, where there is one beside the checkout or it is named."""
    beside = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("COSMOS_HPC_TEST_DATA", beside)) / name
    return folder if folder.is_dir() else None


def real_videos() -> Path | None:
    """Folder of real driving videos, if there is one."""
    return real_data("driving")


@pytest.fixture(scope="session")
def driving() -> Path:
    """Real driving videos, 60 frames of 1024x640 each."""
    folder = real_videos()
    if folder is None:
        pytest.skip("no real videos here; name their folder in COSMOS_HPC_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small videos that the package makes."""
    from cosmos_hpc.worker.video.samples import SampleVideos, make_sample_videos

    folder = tmp_path_factory.mktemp("scenes")
    make_sample_videos(folder, SampleVideos(count=8, frames=20, height=96, width=160))
    return folder


@dataclass(frozen=True)
class OldRun:
    """What version 0.1.0 left before its modules moved, and what it had been given.

    Attributes:
        path: a finished run on this machine, whose snapshot is that version.
        recipe: its recipe, resolved.
        videos, weights: what it was made from.
        checkpoint: a NeMo checkpoint that the same version converted from the weights.
    """

    path: Path
    recipe: Path
    videos: Path
    weights: Path
    checkpoint: Path

    @property
    def code(self) -> Path:
        """The package as it was."""
        return next((self.path / "code").iterdir())


@pytest.fixture
def old_run(tmp_path: Path) -> OldRun:
    """The archive of an old run, as if it had been made in this folder."""
    place = tmp_path / "old"
    with tarfile.open(Path(__file__).parent / "fixtures" / "old_run.tar.xz") as archive:
        archive.extractall(place, filter="data")
    for path in place.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml") and "checkpoint" not in str(path):
            path.write_text(path.read_text().replace("/OLD", str(place)))
    names = ("run", "tiny.yaml", "videos", "weights.pt", "checkpoint")
    return OldRun(*(place / name for name in names))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub on this machine with what ar4b needs, for this process and those that it starts."""
    import huggingface_hub.constants as constants
    from huggingface_hub.utils import reset_sessions

    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeHub()
    server = fake.start()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    resolve = "/{repo_id}/resolve/{revision}/{filename}"
    for module in ("constants", "file_download"):
        name = f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE"
        monkeypatch.setattr(name, fake.url + resolve)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    # What a test needs to see within seconds.
    monkeypatch.setattr("cosmos_hpc.hub.transfer._PAUSE", 0.0)
    monkeypatch.setattr("cosmos_hpc.hub.transfer._EVERY", 0.2)
    monkeypatch.setattr("cosmos_hpc.hub.transfer._LOOK", 0.05)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    reset_sessions()
    yield fake
    server.shutdown()
    server.server_close()
    reset_sessions()


@pytest.fixture
def browser() -> Iterator[Chrome]:
    """A browser without a window."""
    from tests.browser import open_browser

    yield from open_browser()


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def cosmos_hpc(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 900
) -> Outcome:
    """Run the command line as a person would."""
    command = [sys.executable, "-m", "cosmos_hpc", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def executables(folder: Path, **texts: str) -> Path:
    """A folder for the PATH with these commands, each by its text in bash."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def squashfs(folder: Path, *paths: str, path: str | None = None) -> Path:
    """A squashfs image with these empty files, and a PATH as enroot notes it.

    Skips the test where squashfs-tools are not installed.
    """
    if not shutil.which("mksquashfs"):
        pytest.skip("squashfs-tools are not installed")
    content, image = folder / "content", folder / "image.sqsh"
    for name in ("etc/environment", *paths):
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).touch()
    if path:
        (content / "etc/environment").write_text(f"LANG=C\nPATH={path}\n")
    command = ["mksquashfs", str(content), str(image), "-noappend", "-quiet", "-no-progress"]
    subprocess.run(command, check=True, capture_output=True)
    return image


def list_videos(source: str) -> list[str]:
    """Paths of the videos of a source, in their order."""
    return [row["path"] for row in list_video_files(source)[1]]


def steps_of(run: RunFolder, since: float = 0) -> int:
    """The training step that a run has come to, since a moment where that matters."""
    rows = files.read_jsonl(run.train.metrics)
    return max((row["step"] for row in rows if "loss" in row and row["time"] > since), default=0)


#: Clips with a quarter of the recipe's ids, and of the time of a step.
SMALL_CLIPS = ("data.height=48", "data.width=80")

#: The request of the runs that tests compare with each other.
REQUEST = (
    "recipe=ar_tiny",
    "train.max_steps=24",
    "train.save_every=8",
    "train.validate_every=12",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    *SMALL_CLIPS,
    # Samples have tests of their own.
    "generate.tasks=0",
)


@dataclass(frozen=True)
class FinishedRun:
    """A run of :data:`REQUEST`, the folder it was submitted from, and what was printed."""

    path: Path
    home: Path
    first: Outcome


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> FinishedRun:
    """A run from raw videos to a trained model, on the real videos where there are any.

    Made once, also where several processes share the tests.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    home, printed = place / "finished", place / "finished.json"
    with files.lock(place / "finished.lock", lambda holder: None):
        if not printed.exists():
            home.mkdir(exist_ok=True)
            words = (*REQUEST, f"data.input={real_videos() or scenes}", "--name", "whole")
            secrets = {**CANARIES, "WANDB_MODE": "offline"}
            outcome = cosmos_hpc("submit", *words, cwd=home, env=secrets)
            files.write_json(printed, asdict(outcome))
    return FinishedRun(home / "runs" / "whole", home, Outcome(**files.read_json(printed)))
