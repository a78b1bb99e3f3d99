"""Where a training is logged: checkpoints in the run folder, Weights & Biases, TensorBoard."""

from __future__ import annotations

import contextlib
import netrc
import os
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from nemo import lightning as nl

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.sweeps import membership
from cosmos_hpc.utils.progress import say
from cosmos_hpc.worker.training.checkpoints import Checkpoints

#: Seconds that Weights & Biases has to answer: many nodes of clusters have no network.
_WANDB_SECONDS = 15


def _wandb(run: RunFolder, recipe: Recipe) -> WandbLogger | None:
    """Weights & Biases when there is a key, or when it is told to work offline."""
    mode = os.environ.get("WANDB_MODE")
    if mode == "disabled" or (mode != "offline" and not _has_key()):
        return None
    try:
        return _wandb_logger(run, recipe)
    except wandb.errors.Error as e:
        reason = str(e).strip().partition("\n")[0]
        say(
            f"Weights & Biases does not take this run ({reason}); its files are kept in "
            f"{run.train.path / 'wandb'}, and wandb sync sends them later"
        )
        # Its service holds the id of the run, and reads the mode only when it starts.
        wandb.teardown()
        os.environ["WANDB_MODE"] = "offline"
        return _wandb_logger(run, recipe)


def _has_key() -> bool:
    """Whether there is a key: in the environment, or where ``wandb login`` has put one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
        return urlsplit(wandb.setup().settings.base_url).hostname in hosts
    return False


def _wandb_logger(run: RunFolder, recipe: Recipe) -> WandbLogger:
    told, member = recipe.train.wandb, membership(run)
    # The same id for every attempt, so that a resumed run continues its curves.
    logger = WandbLogger(
        project=told.project,
        entity=told.entity,
        tags=told.tags,
        # Runs of a sweep stand together.
        group=member.sweep if member else None,
        config=recipe.as_dict(),
        # A resumed run may have other settings.
        allow_val_change=True,
        name=run.name,
        id=run.id(),
        resume="allow",
        save_dir=str(run.train.path),
        settings=wandb.Settings(init_timeout=_WANDB_SECONDS),
    )
    if int(os.environ.get("RANK", "0")) == 0:
        # Begins it now: where it fails, something can be done about it.
        logger.experiment  # noqa: B018
    return logger


def _tensorboard(run: RunFolder) -> TensorBoardLogger:
    # One folder for all attempts, of which TensorBoard makes one curve.
    return TensorBoardLogger(run.train.path, name="tensorboard", version="")


def run_logger(run: RunFolder, recipe: Recipe, validates: bool) -> nl.NeMoLogger:
    """Checkpoints in the run folder, and Weights & Biases and TensorBoard where they are wanted."""
    train = recipe.train
    return nl.NeMoLogger(
        # A folder of its own: NeMo moves files of earlier attempts out of it.
        explicit_log_dir=str(run.train.path / "nemo"),
        ckpt=Checkpoints(
            save_every=train.save_every,
            validate_every=train.validate_every if validates else None,
            stop_requested=run.stop_requested,
            dirpath=run.train.checkpoints,
            filename="{step}-{reduced_train_loss:.4f}",
            monitor="reduced_train_loss",
            save_top_k=train.keep_checkpoints,
            save_last="link",
            # Without the optimizer a finished run could not be continued.
            save_optim_on_train_end=True,
        ),
        update_logger_directory=False,
        wandb=_wandb(run, recipe),
        tensorboard=_tensorboard(run) if train.tensorboard else None,
    )
