"""Adapters are trained by NeMo's PEFT, saved alone, resumed exactly and merged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cosmos_hpc.models.adapters import linear_layers
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.checkpoints.weights import weights_of
from cosmos_hpc.runs.folder import RunFolder
from tests.worker.training.fit import recipe_of, train, validation_clips, write_weights

pytestmark = pytest.mark.slow

LORA = ("train.lora.rank=4", "train.lora.alpha=8", "train.learning_rate=3e-2")
#: Adapters of feed-forward layers alone, which are computed again, in the first layer too.
AGAIN = ("train.lora.targets=[linear_fc1,linear_fc2]", "train.recompute=selective")
MORE = ("train.lora.dropout=0.1", "train.tensorboard=true", "train.schedule=cosine")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, its metrics, and the settings."""
    place = tmp_path_factory.mktemp("lora")
    write_weights(place / "base.pt")
    settings = (*LORA, *AGAIN, *MORE, f"train.init_from={place / 'base.pt'}")
    return place / "run", train(place / "run", *settings), settings


def checkpoint(folder: Path, step: int) -> Path:
    found = RunFolder(folder).train.checkpoints.glob(f"step={step - 1}-*")
    return next(path for path in found if not path.is_symlink())


def test_the_loss_falls_and_what_is_measured_is_written(trained):
    folder, rows, _ = trained
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "validation_loss" in row] == [0, 2, 4]
    validated = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert validated[0] > validated[1] > validated[2]
    # No warm-up in so few steps: a cosine from the first to the last.
    assert [row["learning_rate"] for row in steps] == pytest.approx([0.03, 0.0225, 0.0075, 0.0])
    assert all(row["grad_norm"] > 0 and 0 <= row["token_accuracy"] <= 1 for row in steps)
    assert all(row["tokens_per_second"] > 0 for row in steps)
    # The base is random here.
    assert "warning: the first loss is 11." in (folder / "log").read_text()
    # TensorBoard has the same.
    board = EventAccumulator(str(folder / "train" / "tensorboard")).Reload()
    for name, tag in (
        ("loss", "reduced_train_loss"),
        ("token_accuracy", "token_accuracy"),
        ("grad_norm", "grad_norm"),
        ("learning_rate", "lr"),
        ("tokens_per_second", "tokens_per_second"),
    ):
        shown = [scalar.value for scalar in board.Scalars(tag)]
        assert shown == pytest.approx([row[name] for row in steps], rel=1e-4), tag
    assert [scalar.value for scalar in board.Scalars("val_loss")] == pytest.approx(validated)


def test_a_checkpoint_holds_the_adapters_alone_and_names_the_base(trained):
    folder, _, settings = trained
    path = checkpoint(folder, 4)
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(path / "weights").read_metadata().state_dict_metadata
    names = {key for key in stored if not key.startswith(("optimizer.", "chained", "rng"))}
    assert len([name for name in names if ".adapter.linear_" in name]) >= 4
    assert all(".adapter." in name for name in names), names
    said = json.loads((path / "weights" / "adapter_metadata.json").read_text())
    assert (said["rank"], said["alpha"]) == (4, 8.0)
    assert said["model_ckpt_path"] == str(folder.parent / "base.pt")
    weights = open_weights(path)
    weights.expect(recipe_of(list(settings)).model)
    base = open_weights(folder.parent / "base.pt")
    for weight in weights_of(weights.sizes()):
        adapted = ".linear_fc" in weight.name
        assert torch.equal(weights.read(weight), base.read(weight)) != adapted, weight


def test_an_interrupted_training_goes_on_exactly(trained, tmp_path):
    folder, rows, settings = trained
    rest = RunFolder(tmp_path / "rest").train.checkpoints
    shutil.copytree(checkpoint(folder, 2), rest / checkpoint(folder, 2).name)
    again = train(tmp_path / "rest", *settings)

    def seen(rows):
        names = ("loss", "validation_loss", "token_accuracy", "learning_rate")
        return [row[name] for row in rows for name in names if row["step"] > 2 and name in row]

    assert [row["step"] for row in again] == [3, 4, 4]
    # But for the order in which processors add.
    assert seen(again) == pytest.approx(seen(rows), rel=1e-6)
    first, second = (open_weights(checkpoint(f, 4)) for f in (folder, tmp_path / "rest"))
    for weight in weights_of(first.sizes()):
        torch.testing.assert_close(first.read(weight), second.read(weight), rtol=1e-5, atol=1e-6)


def test_the_merged_model_has_the_loss_of_the_adapted_one(trained):
    from cosmos_hpc.models.checkpoints.published import from_published
    from cosmos_hpc.models.shapes import published_shapes

    folder, rows, settings = trained
    recipe = recipe_of(list(settings))
    weights, shapes = open_weights(checkpoint(folder, 4)), published_shapes(recipe.model)
    merged = {}
    for weight in weights_of(recipe.model):
        parts = weight.unpack(weights.read(weight), [shapes[p][0] for p in weight.parts])
        merged |= dict(zip(weight.parts, parts, strict=True))
    model = from_published(merged, recipe.model_for_clips())
    clips = validation_clips(recipe)
    samples = [clips[index] for index in range(len(clips))]
    with torch.no_grad():
        logits = model(torch.stack([s["tokens"] for s in samples]))[:, :-1]
    labels = torch.stack([s["labels"] for s in samples])[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    right = (logits.argmax(-1) == labels).float().mean()
    last = rows[-1]
    assert last["validation_loss"] == pytest.approx(float(loss), abs=2e-5)
    assert last["validation_token_accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_the_logits_of_adapted_layers_are_those_of_merged_weights():
    """Every kind of linear layer, cross-attention's included, through NeMo's own layers."""
    from cosmos_hpc.models.checkpoints.published import from_published
    from cosmos_hpc.worker.training import patches
    from cosmos_hpc.worker.training.lora import Adapters
    from tests.models.checkpoints.test_adapted import random_weights
    from tests.models.stored import small_model

    patches.add_adapters_without_transformer_engine()
    config = small_model("5b")
    tensors = random_weights(config)
    adapted = from_published(tensors, config)
    make = Adapters(target_modules=[n.rpartition(".")[2] for n in linear_layers(config)], dim=3)
    merged = dict(tensors)
    for weight in weights_of(config):
        name = weight.module_name.removesuffix(".weight")
        if weight.layer is None or ".linear_" not in name:
            continue
        path, _, last = name.rpartition(".")
        parent = adapted.decoder.get_submodule(path)
        layer = make.transform(getattr(parent, last), name=last, prefix=path)
        torch.nn.init.normal_(layer.adapter.linear_out.weight, std=0.1)
        setattr(parent, last, layer)
        with torch.no_grad():
            change = layer.adapter.linear_out.weight @ layer.adapter.linear_in.weight
            packed = layer.to_wrap.weight + 32 / 3 * change
        parts = weight.unpack(packed, [tensors[part].shape[0] for part in weight.parts])
        merged |= dict(zip(weight.parts, parts, strict=True))
    ids = torch.randint(0, 80, (2, config.sequence_length))
    context = torch.randn(2, 5, config.context_width)
    with torch.no_grad():
        found, plain = adapted(ids, context), from_published(tensors, config)(ids, context)
        expected = from_published(merged, config)(ids, context)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert (found - plain).abs().max() > 0.1
