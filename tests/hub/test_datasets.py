"""LeRobot data sets on the Hub: planned from their information, fetched where they are needed."""

import pytest

from cosmos_hpc.api import download
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.hub.datasets import dataset_files, located
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.worker.stages.download import download as download_stage
from tests.conftest import cosmos_hpc
from tests.fake_hub import COMMIT
from tests.worker.lerobot import FRONT, WRIST, Robot
from tests.worker.preparing import opened, planned, prepared

NAME = "lab/so100"
SOURCE = f"hf://datasets/{NAME}"


@pytest.fixture
def published(hub, tmp_path):
    """A data set of two cameras and three files of each on the Hub."""
    robot = Robot((4, 5, 3, 4, 5, 3), cameras=(FRONT, WRIST), files=2)
    hub.publish(f"datasets/{NAME}", robot.write(tmp_path / "published"))
    return hub


#: The request of these tests.
HOW = ("ar_tiny_action", f"data.input={SOURCE}", "data.camera=wrist")


def sent(hub):
    """What was sent of the data set."""
    return {path.removeprefix(f"datasets/{NAME}/") for path in hub.sent()}


def test_no_more_is_fetched_than_the_run_reads(published, tmp_path):
    name, *how = HOW
    how.append("data.episodes=0,2-3")
    assert located(load_recipe(name, how)).data.input
    # The login side reads what is said of the data set.
    meta = {"meta/info.json", "meta/stats.json", "meta/episodes/chunk-000/file-000.parquet"}
    assert sent(published) == meta
    stages = ("--stages", "download,preprocess,finalize", "--name", "x")
    done = cosmos_hpc("submit", f"recipe={name}", *how, *stages, cwd=tmp_path)
    assert done.code == 0, done.err
    assert sent(published) == meta | {
        f"{kind}/chunk-000/file-00{n}.{ending}"
        for n in (0, 1)
        for kind, ending in ((f"videos/{WRIST}", "mp4"), ("data", "parquet"))
    }
    run = RunFolder(tmp_path / "runs" / "x")
    assert run.recipe().data.input == SOURCE
    assert run.data.folders()[0].endswith(f"hf/hub/datasets--lab--so100/snapshots/{COMMIT}")
    rows = files.read_jsonl(run.tokens.samples / "clips.jsonl")
    assert [row["video"] for row in rows] == [f"episode_{i:06d}" for i in (0, 2, 3)]
    # A run that has begun continues without the Hub.
    published.down = 503
    marker_path(run, "finalize").unlink()
    again = cosmos_hpc("submit", f"recipe={name}", *how, *stages, cwd=tmp_path)
    assert again.code == 0, again.err


def test_a_transfer_that_broke_off_goes_on_and_a_full_cache_does_without_the_hub(
    published, tmp_path, monkeypatch
):
    broken = f"datasets/{NAME}/videos/{WRIST}/chunk-000/file-001.mp4"
    published.cuts[broken] = [100] * 5
    run, recipe = opened(tmp_path / "run", *HOW)
    with pytest.raises(WorkError, match="the same command resumes"):
        download_stage(run, recipe)
    download_stage(run, recipe)
    ranges = [asked for path, asked in published.transfers() if path == broken]
    assert len(ranges) == 6 and ranges[-1]  # from where it had stopped
    before = len(published.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline, _ = planned(tmp_path / "offline", *HOW)
    assert len(published.requests) == before
    assert offline.data.videos.read_bytes() == run.data.videos.read_bytes()


def test_files_that_the_data_set_lacks_are_listed(published, tmp_path):
    del published.repositories[f"datasets/{NAME}"][f"videos/{WRIST}/chunk-000/file-001.mp4"]
    run = prepared(tmp_path / "run", *HOW, "data.decoders=0", shards=1)
    assert [(row["video"], row["kind"]) for row in files.read_jsonl(run.tokens.failed)] == [
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
