"""Decoders that are complete on one device, with weights of a file or with random ones."""

from __future__ import annotations

from pathlib import Path

import torch

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.checkpoints.published import load_weights, one_rank
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.megatron import megatron_config


def load_decoder(
    path: Path, model: ModelConfig, device: torch.device, dtype: torch.dtype
) -> CosmosDecoder:
    """A decoder with the weights of a checkpoint of any form, read one at a time.

    Args:
        path: as for :func:`cosmos_hpc.models.checkpoints.reader.open_weights`.
        model: the architecture.
        device: where the weights go; on a GPU the host's memory never holds all of them.
        dtype: float32 or bfloat16.

    Raises:
        RequestError: it is no checkpoint, is damaged, or is of another architecture.
    """
    weights = open_weights(path)
    # Before a decoder of the wrong size is built.
    weights.expect(model)
    decoder = _build(model, device, dtype, perform_initialization=False)
    missing = load_weights(decoder, model, weights)
    if missing:
        raise RequestError(f"{weights.where} lacks {missing[0]}, which this model needs")
    return decoder


def random_decoder(
    model: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int
) -> CosmosDecoder:
    """A decoder with random weights, of the distribution that trainings begin with."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return _build(model, device, dtype, seed=seed)


def _build(
    model: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    perform_initialization: bool = True,
) -> CosmosDecoder:
    one_rank()
    on_gpu = device.type == "cuda"
    if on_gpu:
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(seed)
    settings = megatron_config(
        model,
        cpu=not on_gpu,
        # Generation states the layers' arithmetic itself, over the weights of these.
        transformer_impl="local",
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        perform_initialization=perform_initialization,
    )
    decoder = CosmosDecoder(settings, model, pre_process=True, post_process=True)
    # The head of actions is PyTorch's own, which knows nothing of Megatron's settings.
    return decoder.to(device, dtype).eval()
