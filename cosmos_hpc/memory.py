"""Memory of a training step on one GPU, as a sum of parts that can be explained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from cosmos_hpc.models.config import ModelConfig

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Layout:
    """How a model is spread over GPUs.

    Attributes:
        tensor_parallel: ranks that share one copy of the model.
        data_parallel: copies; each holds an equal part of the optimizer's state.
        sequence_parallel: the tensor-parallel ranks also share what lies between linear layers.
        recompute: what is computed again in the backward pass instead of kept: nothing, the
            feed-forward layers, or all but the input of each layer.
        micro_batch_size: samples in one pass.
    """

    tensor_parallel: int = 1
    data_parallel: int = 1
    sequence_parallel: bool = False
    recompute: Recompute = "none"
    micro_batch_size: int = 1

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.tensor_parallel * self.data_parallel

    def __str__(self) -> str:
        parts = [f"tensor parallel {self.tensor_parallel}", f"data parallel {self.data_parallel}"]
        if self.sequence_parallel:
            parts.append("sequence parallel")
        parts.append({"none": "no"}.get(self.recompute, self.recompute) + " recomputation")
        return ", ".join(parts)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the moment of a step when they are most.

    Attributes:
        weights: bf16.
        gradients: float32, as the data-parallel ranks add them up.
        optimizer: float32 weights and Adam's two moments.
        activations: what the layers keep from the forward pass for the backward pass.
        logits: of all positions, in bf16 and twice in float32, for the loss.
        workspace: gathered sequences, what a layer computes again or needs on the way.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(asdict(self).values())


def training_memory(model: ModelConfig, layout: Layout) -> Memory:
    """Memory of a step with bf16 weights and Megatron's distributed optimizer.

    Activations are counted tensor by tensor from what autograd keeps of each operation, after
    Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022), for
    an attention that keeps no scores. How far this is from what GPUs report stands in
    ``benchmarks/README.md``.
    """
    params = _parameters_of_a_rank(model, layout.tensor_parallel)
    tokens = model.sequence_length * layout.micro_batch_size
    split = layout.tensor_parallel
    spread = split if layout.sequence_parallel else 1
    whole_layer = tokens * (_between(model) // spread + (_attention(model) + _mlp(model)) // split)
    kept = {
        "none": whole_layer,
        "selective": whole_layer - tokens * _mlp(model) // split,
        "full": 2 * tokens * model.hidden_size // spread,
    }[layout.recompute]
    # Embeddings, and input and output of the last norm.
    ends = 3 * 2 * tokens * model.hidden_size // spread
    logits = 10 * tokens * model.output_vocab_size // split
    return Memory(
        weights=2 * params,
        gradients=4 * params,
        optimizer=12 * params // layout.data_parallel,
        activations=model.num_layers * kept + ends,
        logits=logits,
        workspace=max(0, _one_layer(model, layout, tokens, whole_layer - kept) - logits),
    )


def _parameters_of_a_rank(model: ModelConfig, tensor_parallel: int) -> int:
    """Norms and the action head are on every rank, all else is divided."""
    norms = 2 * model.hidden_size + 2 * model.kv_channels
    if model.context_width:
        norms += model.hidden_size + 2 * model.kv_channels
    same = model.num_layers * norms + model.hidden_size + model.num_action_parameters
    return same + (model.num_parameters - same) // tensor_parallel


def _between(model: ModelConfig) -> int:
    """Bytes a position that a layer keeps outside of its linear layers: inputs of norms, outputs.

    Two norms, or three with text.
    """
    return (12 if model.context_width else 8) * model.hidden_size


def _attention(model: ModelConfig) -> int:
    """Bytes a position: inputs of the norms of q and k, q, k and v, and the output."""
    query = model.num_attention_heads * model.kv_channels
    key = model.num_query_groups * model.kv_channels
    own = 8 * query + 6 * key
    return own + 6 * query if model.context_width else own


def _mlp(model: ModelConfig) -> int:
    """Bytes a position: gate and up projection before, and their product after the activation."""
    return 6 * model.ffn_hidden_size


def _one_layer(model: ModelConfig, layout: Layout, tokens: int, again: int) -> int:
    """Bytes that the backward pass of a layer needs beside what was kept.

    What it computes ``again``, the gradients inside the feed-forward layer, the gathered sequence
    and its gradient.
    """
    gradients = tokens * _mlp(model) // layout.tensor_parallel
    gathered = 4 * tokens * model.hidden_size if layout.sequence_parallel else 0
    return again + gradients + gathered
