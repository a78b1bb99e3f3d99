"""Megatron's configuration of an architecture: what Cosmos has and Megatron's defaults do not."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.layers import choose_transformer_impl

#: Fields of Megatron's configuration for what is computed again in the backward pass.
RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    # The feed-forward layer holds more than half of the activations. Megatron's own choice, the
    # core attention, would free nothing: PyTorch's and Transformer Engine's keep no scores.
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}


def megatron_settings(
    model: ModelConfig,
    cpu: bool,
    transformer_impl: str = "auto",
    recompute: str = "none",
    recompute_layers: int | None = None,
    context_parallel: int = 1,
) -> dict[str, Any]:
    """Fields of Megatron's ``TransformerConfig`` for an architecture.

    Args:
        model: the architecture.
        cpu: no CUDA: weights are initialised on the CPU, and kernels that only CUDA has are off.
        transformer_impl: see :func:`cosmos_hpc.models.layers.choose_transformer_impl`.
        recompute: ``none``, ``selective`` (the feed-forward layer) or ``full`` (all but the input
            of each layer).
        recompute_layers: of how many layers, with ``full``, the first ones; None: of all.
        context_parallel: ranks that share the sequence of a sample.
    """
    some = {"recompute_method": "block", "recompute_num_layers": recompute_layers}
    return {
        **RECOMPUTE[recompute],
        **(some if recompute_layers else {}),
        "transformer_impl": choose_transformer_impl(transformer_impl),
        "context_parallel_size": context_parallel,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-5,
        "qk_layernorm": True,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "use_cpu_initialization": cpu,
        "bias_activation_fusion": not cpu,
        "cross_entropy_loss_fusion": not cpu,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": False,
    }


def megatron_config(
    model: ModelConfig,
    cpu: bool,
    transformer_impl: str = "auto",
    recompute: str = "none",
    context_parallel: int = 1,
    **parallel: Any,
) -> TransformerConfig:
    """Megatron's configuration of an architecture without NeMo, with ``parallel`` settings."""
    settings = megatron_settings(
        model, cpu, transformer_impl, recompute, context_parallel=context_parallel
    )
    return TransformerConfig(**settings, **parallel)
