"""LeRobot data sets on the Hub: planned from their information, fetched where they are needed."""

import pytest

from cosmos_hpc.api import download
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.hub.datasets import dataset_files, located
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from tests.conftest import cosmos_hpc
from tests.fake_hub import COMMIT
from tests.worker.lerobot import FRONT, WRIST, Robot, action

NAME = "lab/so100"
SOURCE = f"hf://datasets/{NAME}"


def publish(hub, folder):
    """Put a folder on the Hub."""
    hub.repositories[f"datasets/{NAME}"] = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def published(hub, tmp_path):
    """A data set of two cameras and three files of each on the Hub."""
    robot = Robot((4, 5, 3, 4, 5, 3), cameras=(FRONT, WRIST), files=2)
    publish(hub, robot.write(tmp_path / "published"))
    return hub


def submit(home, *more, name="x"):
    how = ("recipe=ar_tiny_action", f"data.input={SOURCE}", "data.camera=wrist", *more)
    stages = ("--stages", "download,preprocess,finalize", "--name", name)
    return cosmos_hpc("submit", *how, *stages, cwd=home)


def sent(hub):
    """What was sent of the data set."""
    return {path.removeprefix(f"datasets/{NAME}/") for path in hub.sent()}


def test_no_more_is_fetched_than_the_run_reads(published, tmp_path):
    dry = cosmos_hpc(
        "submit", "recipe=ar_tiny_action", f"data.input={SOURCE}", "data.camera=wrist",
        "data.episodes=0,2-3", "--dry-run", "--name", "x", cwd=tmp_path,
    )  # fmt: skip
    assert dry.code == 0, dry.err
    # The login side reads what is said of the data set.
    meta = {"meta/info.json", "meta/stats.json", "meta/episodes/chunk-000/file-000.parquet"}
    assert sent(published) == meta
    done = submit(tmp_path, "data.episodes=0,2-3")
    assert done.code == 0, done.err
    assert sent(published) == meta | {
        f"{name}/chunk-000/file-00{n}.{kind}"
        for n in (0, 1)
        for name, kind in ((f"videos/{WRIST}", "mp4"), ("data", "parquet"))
    }
    run = RunFolder(tmp_path / "runs" / "x")
    assert run.recipe().data.input == SOURCE
    assert run.data.folders()[0].endswith(f"hf/hub/datasets--lab--so100/snapshots/{COMMIT}")
    rows = files.read_jsonl(run.tokens.samples / "clips.jsonl")
    assert [row["video"] for row in rows] == [f"episode_{i:06d}" for i in (0, 2, 3)]
    assert rows[2]["frames"] == 4 and action(3, 0)
    # A run that has begun goes on without the Hub.
    published.down = 503
    marker_path(run, "finalize").unlink()
    again = submit(tmp_path, "data.episodes=0,2-3")
    assert again.code == 0, again.err


def test_a_transfer_that_broke_off_goes_on_and_a_full_cache_does_without_the_hub(
    published, tmp_path, monkeypatch
):
    broken = f"datasets/{NAME}/videos/{WRIST}/chunk-000/file-001.mp4"
    published.cuts[broken] = [100] * 5
    first = submit(tmp_path, "data.max_failed_fraction=0.1")
    assert first.code == 1
    assert "the same command goes on from here" in first.err
    done = submit(tmp_path, "data.max_failed_fraction=0.1")
    assert done.code == 0, done.err
    ranges = [asked for path, asked in published.transfers() if path == broken]
    assert any(ranges[5:])  # from where it had stopped
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(published.requests)
    offline = submit(tmp_path, name="offline")
    assert offline.code == 0, offline.err
    assert len(published.requests) == before
    one, other = (RunFolder(tmp_path / "runs" / name) for name in ("x", "offline"))
    ids = [run.tokens.prefix.with_suffix(".bin").read_bytes() for run in (one, other)]
    assert ids[0] == ids[1]


def test_files_that_the_data_set_lacks_are_listed(published, tmp_path):
    del published.repositories[f"datasets/{NAME}"][f"videos/{WRIST}/chunk-000/file-001.mp4"]
    done = submit(tmp_path)
    assert done.code == 0, done.err
    failed = files.read_jsonl(RunFolder(tmp_path / "runs" / "x").tokens.failed)
    assert [(row["video"], row["error"]) for row in failed] == [
        ("episode_000002", "missing"),
        ("episode_000003", "missing"),
    ]


def test_what_is_refused_before_anything_starts(published, tmp_path, monkeypatch):
    published.gated.add("datasets/lab/closed")
    published.repositories["datasets/lab/closed"] = {"meta/info.json": b"{}"}
    published.repositories["datasets/lab/other"] = {"train.csv": b"a,b"}

    def refused(source):
        with pytest.raises(RequestError) as e:
            located(load_recipe("ar_tiny_action", [f"data.input={source}"]))
        return str(e.value)

    assert "no repository lab/none on the Hub" in refused("hf://datasets/lab/none")
    assert "lab/closed is gated" in refused("hf://datasets/lab/closed")
    assert "lab/other lacks a file: there is no meta/info.json" in refused(
        "hf://datasets/lab/other"
    )
    assert "no such branch, tag or commit" in refused(f"{SOURCE}@v9")
    assert "names no data set" in refused("hf://datasets/so100")
    assert "names no data set" in refused(f"{SOURCE}@")
    published.revisions = ("v2",)
    assert dataset_files(f"{SOURCE}@v2", ()).revision == "v2"
    assert located(load_recipe("ar_tiny_action", [f"data.input={SOURCE}@v2"])).data.input
    monkeypatch.delenv("HF_HOME")
    assert "HF_HOME is not set" in refused(SOURCE)


def test_a_download_of_a_recipe_brings_its_data(published, tmp_path):
    how = [f"data.input={SOURCE}", "data.camera=front", "data.episodes=4-5"]
    folder = download(["ar_tiny_action"], how)[f"datasets/{NAME}"]
    assert (folder / f"videos/{FRONT}/chunk-000/file-002.mp4").stat().st_size
    assert not (folder / "videos" / WRIST).exists()
