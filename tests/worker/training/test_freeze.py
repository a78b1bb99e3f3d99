"""Parts that are frozen keep their weights, in a training that is resumed and computes again."""

import pytest
import torch

from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.checkpoints.weights import weights_of
from cosmos_hpc.models.parts import belongs, layers_of
from cosmos_hpc.models.shapes import published_shapes
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.sweeps import Membership, join_sweep
from tests.worker.training.fit import recipe_of, train, write_weights


def test_names_of_parts_in_megatron_and_in_published_files():
    model = recipe_of([]).model
    parts = ["embedding", "layers.1-2"]
    assert layers_of(parts) == [1, 2]
    for weight in weights_of(model):
        frozen = weight.layer in (1, 2) or weight.name.startswith("embedding")
        assert belongs(weight.module_name, parts) == frozen
        assert all(belongs(name, parts) == frozen for name in weight.parts)
    of_output = [name for name in published_shapes(model) if belongs(name, ["output_layer"])]
    assert of_output == ["model.output.weight"]


@pytest.mark.slow
def test_frozen_parts_keep_their_weights(tmp_path):
    write_weights(tmp_path / "base.pt")
    parts = ["embedding", "layers.0"]
    settings = (f"train.freeze=[{','.join(parts)}]", f"train.init_from={tmp_path / 'base.pt'}")
    settings += ("train.recompute=full", "train.validate_first=false", "train.wandb.tags=[a-tag]")
    settings += ("train.wandb.project=a-project", "train.wandb.entity=a-team")
    join_sweep(RunFolder(tmp_path / "run"), Membership("a-sweep", {"train.seed": 1}))
    offline = {"WANDB_MODE": "offline"}
    rows = train(tmp_path / "run", *settings, "train.max_steps=3", **offline)
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 3]
    rows = train(
        tmp_path / "run", *settings, "train.max_steps=4", "train.validate_every=3", **offline
    )
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 3, 4]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses == sorted(losses, reverse=True) and len(losses) == 4
    run = RunFolder(tmp_path / "run")
    assert "resumable" not in (run.path / "log").read_text()
    last = next(run.train.checkpoints.glob("step=3-*-last"))
    trained, base = open_weights(last), open_weights(tmp_path / "base.pt")
    trained.expect(recipe_of([]).model)
    for weight in weights_of(recipe_of([]).model):
        same = torch.equal(trained.read(weight), base.read(weight))
        assert same == belongs(weight.module_name, parts), weight.module_name
    logs = list(run.train.path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 2
    sent = b"".join(path.read_bytes() for path in logs)
    # Where it appears, the recipe as its config, and metrics.
    for text in ("a-tag", "a-project", "a-team", "a-sweep", "condition_frames"):
        assert text.encode() in sent, text
    for text in ("lr", "grad_norm", "tokens_per_second", "reduced_train_loss", "val_loss"):
        assert text.encode() in sent, text
