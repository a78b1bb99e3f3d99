"""Low-rank adapters by NeMo's PEFT, beside base weights of any format."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nemo.collections.llm.peft import LoRA
from nemo.lightning.ckpt_utils import ADAPTER_META_FILENAME
from nemo.lightning.io.pl import ckpt_to_weights_subdir
from nemo.lightning.pytorch.callbacks.peft import WrappedAdapterIO

from cosmos_hpc.config.sections import Train
from cosmos_hpc.models.adapters import targets_of
from cosmos_hpc.models.config import Architecture
from cosmos_hpc.models.shapes import ACTION_MLP
from cosmos_hpc.utils import files


class Adapters(LoRA):
    """NeMo's LoRA, whose checkpoints hold the adapters alone and say what they belong to.

    The head for actions, which base checkpoints lack, is trained and saved in full.

    Attributes:
        base: file or folder of the weights beside which the adapters are trained.
        source: the same as the recipe says it: a path, or a name on the Hub.
    """

    base: Path
    source: str

    def get_wrappped_io(self) -> Any:
        """What reads and writes checkpoints; the name is NeMo's."""
        return partial(AdapterFiles, peft=self)

    def freeze_model(self, model: torch.nn.Module) -> None:
        """Freeze all but the head for actions."""
        super().freeze_model(model)
        for name, parameter in model.named_parameters():
            if name.endswith(tuple(ACTION_MLP)):
                parameter.requires_grad = True

    def adapter_key_filter(self, key: Any) -> bool:
        """Whether an entry of the model's state belongs into the checkpoint."""
        if isinstance(key, tuple):
            return bool(key[1].requires_grad)
        return ".adapter." in key or key.endswith(tuple(ACTION_MLP))


class AdapterFiles(WrappedAdapterIO):
    """Checkpoints of adapters.

    NeMo loads base weights from NeMo checkpoints; here the model has them before, whatever their
    format.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> Any:
        """Write the adapters, and beside them what merging them takes."""
        peft = self.peft
        self.model_ckpt_path = peft.base
        request = super().save_checkpoint(checkpoint, path, storage_options)
        if torch.distributed.get_rank() == 0:
            described = ckpt_to_weights_subdir(path, is_saving=True) / ADAPTER_META_FILENAME
            more = {"rank": peft.dim, "alpha": peft.alpha, "source": peft.source}
            files.write_json(described, {**json.loads(described.read_text()), **more})
        return request

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The state of the trainer at first; adapters and optimizer in NeMo's second call."""
        if getattr(path, "base_model_path", None) is None:
            loaded: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
            return loaded
        self.adapter_ckpt_path = Path(str(path))
        state: dict[str, Any] = self.checkpoint_io.load_checkpoint(path, sharded_state_dict={})
        return {**state, "state_dict": {}}


def make_adapters(train: Train, model: Architecture, base: Path | None) -> Adapters | None:
    """NeMo's transform of a model, as the recipe asks for; None without adapters.

    Args:
        train: settings.
        model: the architecture.
        base: the weights to start from; None: random ones, whose adapters only serve to measure.
    """
    if train.lora is None:
        return None
    adapters = Adapters(
        target_modules=train.lora.targets or targets_of(model),
        dim=train.lora.rank,
        alpha=train.lora.alpha,
        dropout=train.lora.dropout,
    )
    adapters.source = str(train.init_from)
    adapters.base = (base or Path(adapters.source)).absolute()
    return adapters
