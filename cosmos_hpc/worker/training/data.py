"""Samples as NeMo's data module."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.num_microbatches_calculator import update_num_microbatches
from nemo import lightning as nl
from nemo.lightning.data import WrappedDataLoader

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.worker.datasets.samples import SampleDataset


class ClipData(pl.LightningDataModule):
    """Training and validation clips for Megatron's sampler, resumable by consumed samples."""

    def __init__(
        self, train: SampleDataset, validation: SampleDataset | None, recipe: Recipe
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.seq_length = recipe.model_for_clips().sequence_length
        self.micro_batch_size = recipe.train.micro_batch_size
        self.global_batch_size = recipe.train.global_batch_size
        self.data_sampler = nl.MegatronDataSampler(
            seq_len=self.seq_length,
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
        )

    def train_dataloader(self) -> WrappedDataLoader:
        """Loader of the training clips; the data sampler gives it its batches."""
        return self._loader("train", self.train)

    def val_dataloader(self) -> WrappedDataLoader | list[Any]:
        """Loader of the validation clips; empty without any."""
        if self.validation is None:
            return []
        return self._loader("validation", self.validation)

    def _loader(self, mode: str, samples: SampleDataset) -> WrappedDataLoader:
        # Copies from memory that is not pinned wait until the GPU has done all that it was given.
        pin = torch.cuda.is_available()
        return WrappedDataLoader(mode=mode, dataset=samples, num_workers=0, pin_memory=pin)

    def state_dict(self) -> dict[str, int]:
        """Samples that all steps so far have consumed."""
        return {"consumed_samples": self.trainer.global_step * self.global_batch_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue with the sample after those consumed."""
        consumed = state_dict["consumed_samples"]
        self.data_sampler.init_consumed_samples = consumed
        self.data_sampler.prev_consumed_samples = consumed
        self.data_sampler.if_first_step = 1
        update_num_microbatches(consumed_samples=consumed, consistency_check=False)
