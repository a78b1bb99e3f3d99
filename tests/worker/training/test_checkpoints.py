"""Which checkpoint a training continues from."""

import shutil

import pytest

from cosmos_hpc.models.checkpoints.distributed_formats import find_damage
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from tests.conftest import cosmos_hpc

pytestmark = pytest.mark.slow


def cut(path):
    """Leave out a file's end, as a full disk does."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


@pytest.mark.parametrize("damage", [cut, lambda path: path.unlink()])
def test_a_damaged_one_is_set_aside_and_the_one_before_taken(old_run, damage, capsys):
    from cosmos_hpc.worker.training.checkpoints import latest_checkpoint

    folder = RunFolder(old_run.path).train.checkpoints
    sound = next(path for path in folder.iterdir() if not path.is_symlink())
    last = folder / "step=3-reduced_train_loss=9.0"
    shutil.copytree(sound, last)
    (folder / f"{last.name}-last").symlink_to(last.name)
    assert find_damage(last / "weights") is None
    assert latest_checkpoint(folder)[0] == 4
    damage(last / "weights" / "__0_1.distcp")
    assert "__0_1.distcp" in find_damage(last / "weights")
    # Every rank finds the same; one of them renames.
    assert latest_checkpoint(folder)[0] == 2
    assert last.exists()
    assert latest_checkpoint(folder, set_aside=True)[0] == 2
    assert (folder / f"damaged-{last.name}").is_dir() and not last.exists()
    assert f"checkpoint {last.name} is damaged (__0_1.distcp" in capsys.readouterr().out
    assert latest_checkpoint(folder)[0] == 2


def test_a_training_begins_anew_where_its_only_checkpoint_is_damaged(old_run, tmp_path):
    run = RunFolder(old_run.path)
    for path in run.train.checkpoints.glob("*/weights/*.distcp"):
        cut(path)
    words = ("submit", f"recipe={old_run.recipe}", f"data.input={old_run.videos}")
    words += (f"train.init_from={old_run.weights}", f"cluster.runs={run.path.parent}")
    outcome = cosmos_hpc(
        *words, "train.max_steps=3", "generate.tasks=0", "--name", run.name, cwd=tmp_path
    )
    assert outcome.code == 0, outcome.err
    log = cosmos_hpc("logs", run.path, "train", cwd=tmp_path).out
    assert "is damaged (__0_0.distcp has" in log
    assert "training from the beginning to step 3" in log
    rows = [row["step"] for row in files.read_jsonl(run.train.metrics) if "loss" in row]
    assert rows == [1, 2, 3]
