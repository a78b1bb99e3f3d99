import pytest

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.planning.plans import make_plan
from cosmos_hpc.runs.create import check_folder, check_name, default_name, open_run
from cosmos_hpc.runs.folder import RunFolder, find_run
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files


def open_with(path, *overrides):
    recipe, cluster = load_recipe("ar_tiny", overrides), load_cluster()
    folder = RunFolder(path)
    return folder, open_run(folder, recipe, cluster, make_plan(recipe, cluster, 8))


def test_a_run_holds_what_it_was_asked_for_and_by_which_versions(tmp_path):
    folder, existed = open_with(tmp_path / "a", "train.max_steps=7")
    assert not existed
    assert folder.recipe().train.max_steps == 7
    assert "name: local" in folder.cluster_file.read_text()
    info = files.read_json(folder.info)
    assert {"nemo_run", "submitit", "torch", "megatron-core"} <= set(info["versions"])
    assert (folder.code() / "cosmos_hpc" / "worker" / "__main__.py").is_file()


def test_continuing_keeps_the_request_but_may_go_further(tmp_path):
    open_with(tmp_path / "a", "train.max_steps=7")
    folder, existed = open_with(
        tmp_path / "a", "train.max_steps=9", "train.micro_batch_size=4", "train.gpus=2"
    )
    assert existed
    assert folder.recipe().train.max_steps == 9
    # Nothing is done yet: nothing was made with other settings either.
    open_with(tmp_path / "a", "data.frames=33")
    open_with(tmp_path / "a")
    files.write_json(marker_path(folder, "preprocess", 3), {})
    with pytest.raises(RequestError, match="run a was made with data.frames=17, not 25; choose"):
        open_with(tmp_path / "a", "data.frames=25")


def test_the_text_of_a_dry_run_counts_as_begun_once_a_task_of_it_runs(tmp_path):
    recipe, cluster = load_recipe("ar_tiny"), load_cluster()
    folder = RunFolder(tmp_path / "a")
    open_run(folder, recipe, cluster, make_plan(recipe, cluster, 8), dry_run=True)
    assert not folder.begun()
    other = load_recipe("ar_tiny", ["data.frames=25"])
    said = "run a was made with data.frames=17, not 25"
    with files.lock(folder.task_lock("preprocess", 3)), pytest.raises(RequestError, match=said):
        check_folder(folder, other)
    assert folder.begun()
    assert check_folder(folder, other)  # it has left nothing


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RequestError, match="exists and is not a run"):
        open_with(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_submit_killed_in_its_first_write_is_no_obstacle(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".recipe.yaml.host.1.tmp").touch()
    assert open_with(tmp_path / "a")[1] is False


def test_a_run_that_was_interrupted_while_it_was_made_is_completed(tmp_path):
    folder, _ = open_with(tmp_path / "a")
    for path in (folder.info, folder.plan_file, folder.cluster_file):
        path.unlink()
    folder, existed = open_with(tmp_path / "a")
    assert existed
    assert find_run(str(tmp_path / "a")).info.is_file()


def test_the_same_request_gets_the_same_name():
    cluster = load_cluster()
    names = {default_name(load_recipe("ar_tiny", o), cluster) for o in ([], [], ["data.input=x"])}
    assert len(names) == 2
    assert all(name.startswith("ar_tiny-") for name in names)


@pytest.mark.parametrize("name", ["", ".", "-x", "a b", "a/b", "../x", "$(x)", "ü", "a\n"])
def test_names_that_are_no_plain_folder_names(name):
    with pytest.raises(RequestError, match="may hold letters"):
        check_name(name)


def test_an_unknown_run_names_the_ones_there_are(tmp_path):
    open_with(tmp_path / "a")
    with pytest.raises(RequestError, match="no run 'b' in .*, where there are a; elsewhere"):
        find_run("b", str(tmp_path))


def test_shards_are_pinned_and_cover_every_video_once(tmp_path):
    folder = RunFolder(tmp_path)
    videos = [f"{i}.mp4" for i in range(11)]
    folder.data.pin("/videos", videos, 3)
    folder.data.pin("/other", videos[:2], 1)  # a later listing changes nothing
    assert folder.data.num_shards() == 3
    shards = [folder.data.of_shard(i) for i in range(3)]
    assert [row["path"] for shard in shards for row in shard.rows] == videos
    assert [first for _, first, _ in shards] == [0, 4, 7]
    assert {str(root) for root, _, _ in shards} == {"/videos"}


def test_a_task_reads_its_own_rows_and_no_others(tmp_path):
    folder = RunFolder(tmp_path)
    rows = [{"path": f"{i}\n\udcff.mp4", "prompt": "ü" * i} for i in range(10)]
    folder.data.pin("/videos", rows, 3, ("bytes", [1] * 9 + [9]))
    assert [folder.data.of_shard(i).rows for i in range(3)] == [rows[:6], rows[6:9], rows[9:]]
    assert (folder.data.num_videos(), folder.data.num_shards()) == (10, 3)
    pinned = files.read_json(folder.data.shards)
    assert (pinned["unit"], pinned["costs"]) == ("bytes", [6, 3, 9])
    content = bytearray(folder.data.videos.read_bytes())
    begin, end = pinned["offsets"][1:3]
    content[:begin], content[end:] = b"x" * begin, b"x" * (len(content) - end)
    folder.data.videos.write_bytes(content)
    assert folder.data.of_shard(1).rows == rows[6:9]
    assert folder.data.of_shard(1)[1:] == (6, rows[6:9])


@pytest.mark.parametrize("damage", [b"", b"{}\n", b'{"path": "a.mp4"}\n' * 3])
def test_a_list_that_was_changed_is_noticed(tmp_path, damage):
    folder = RunFolder(tmp_path)
    folder.data.pin("/videos", ["a.mp4", "b.mp4"], 1)
    folder.data.videos.write_bytes(damage)
    with pytest.raises(WorkError, match=r"videos.jsonl is damaged: .* under another --name"):
        folder.data.of_shard(0)
