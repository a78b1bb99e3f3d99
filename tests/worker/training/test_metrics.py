import lightning.pytorch as pl
import pytest
import torch

from cosmos_hpc.errors import Stopped
from cosmos_hpc.utils import files
from cosmos_hpc.worker.training.metrics import MetricsFile, draw_losses, loss_figure


def test_the_curve_is_drawn_from_what_there_is(tmp_path):
    path = tmp_path / "loss.png"
    draw_losses([], path, {})
    empty = path.read_bytes()
    rows = [{"step": s, "loss": 11 - s} for s in range(5)] + [{"step": 4, "validation_loss": 8}]
    draw_losses(rows, path, {"untrained": 11.07, "unigram": 6.2})
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes() != empty
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]
    # There is no half a step.
    (axes,) = loss_figure(rows[:3], {}).axes
    assert all(tick == round(tick) for tick in axes.get_xticks())


class Model(pl.LightningModule):
    """Logs what NeMo's does, with one weight."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        loss = self.layer(batch).pow(2).mean()
        self.log_dict({"reduced_train_loss": loss, "token_accuracy": 0.5, "grad_norm": 1.0})
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAfter(pl.Callback):
    """As a request to stop does."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise Stopped("stopped")


def test_a_training_that_is_stopped_leaves_its_curve(tmp_path, capsys):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", tmp_path / "loss.png", {}, 8, say_every=0)
    trainer = pl.Trainer(
        max_steps=9,
        accelerator="cpu",
        callbacks=[metrics, StopAfter()],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(Stopped):
        trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(20, 1)))
    assert [row["step"] for row in files.read_jsonl(metrics.path)] == [1, 2, 3]
    assert metrics.curve.read_bytes().startswith(b"\x89PNG")
    assert "step 3/9, loss " in capsys.readouterr().out
