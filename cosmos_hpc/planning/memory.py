"""Memory of a training step on one GPU, as a sum of parts that can be explained."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cache
from typing import Literal

from msgspec import Struct
from msgspec.structs import asdict

from cosmos_hpc.models.config import FUSIONS, ModelConfig
from cosmos_hpc.models.shapes import ACTION_MLP, published_shapes
from cosmos_hpc.utils.progress import count_of

Recompute = Literal["none", "selective", "full"]


class Layout(Struct, frozen=True):
    """How a model is spread over GPUs.

    Attributes:
        tensor_parallel: ranks that share one copy of the model.
        context_parallel: copies that share the sequence of a sample.
        data_parallel: groups of such copies, of which each has samples of its own.
        sequence_parallel: the tensor-parallel ranks also share what lies between linear layers.
        recompute: what is computed again in the backward pass instead of kept: nothing, the
            feed-forward layers, or all but the input of each layer.
        micro_batch_size: samples in one pass.
        precision: ``bf16`` mixed with float32, or ``fp32`` alone.
        distributed_optimizer: all copies share the optimizer's state.
        recompute_layers: of how many layers, with ``full`` recomputation; None: of all.
        gradient_bytes: of a parameter's gradient, as the data-parallel ranks add it up.
        optimizer_bytes: of the optimizer's state of a bf16 parameter: 12 for a float32 weight and
            two moments; 10 for the lower half of the float32 weight and two moments; 6 with moments
            in bf16.
    """

    tensor_parallel: int = 1
    data_parallel: int = 1
    sequence_parallel: bool = False
    recompute: Recompute = "none"
    micro_batch_size: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    distributed_optimizer: bool = True
    recompute_layers: int | None = None
    gradient_bytes: int = 4
    optimizer_bytes: int = 12
    context_parallel: int = 1

    @property
    def copies(self) -> int:
        """Copies of the model, which add up their gradients."""
        return self.context_parallel * self.data_parallel

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.tensor_parallel * self.copies

    def __str__(self) -> str:
        parts = [f"tensor parallel {self.tensor_parallel}"]
        if self.context_parallel > 1:
            parts.append(f"context parallel {self.context_parallel}")
        parts.append(f"data parallel {self.data_parallel}")
        if self.sequence_parallel:
            parts.append("sequence parallel")
        recomputed = {"none": "no"}.get(self.recompute, self.recompute) + " recomputation"
        if self.recompute_layers:
            recomputed += f" of {count_of(self.recompute_layers, 'layer')}"
        parts.append(recomputed)
        return ", ".join(parts)


class Trained(Struct, frozen=True):
    """What of a model is trained; the rest has neither gradients nor an optimizer's state.

    Attributes:
        frozen: parameters of the model that are not trained; None: all of them.
        adapters: parameters of adapters beside the model's own.
    """

    frozen: int | None = 0
    adapters: int = 0

    def of(self, parameters: int) -> int:
        """How many parameters are trained, of a model with this many, or beside them (adapters)."""
        own = 0 if self.frozen is None else parameters - self.frozen
        return own + self.adapters


EVERYTHING = Trained()


class Memory(Struct, frozen=True):
    """Bytes on one GPU at the moment of a step when they are most.

    Attributes:
        weights: bf16, or float32, adapters included.
        gradients: float32 or bf16, of what is trained, as the data-parallel ranks add them up.
        optimizer: Adam's two moments of that, and of bf16 weights what makes them float32.
        activations: what the layers keep from the forward pass for the backward pass.
        logits: of all positions, as the model gives them, and for the loss twice in float32 or,
            where it is fused, their gradient.
        workspace: gathered sequences, what a layer computes again or needs on the way; or what the
            optimizer needs beyond activations and logits.
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


def training_memory(
    model: ModelConfig,
    layout: Layout,
    trained: Trained = EVERYTHING,
    fusions: Collection[str] = FUSIONS,
) -> Memory:
    """Memory of a step with Megatron's optimizer.

    Activations are counted tensor by tensor from what autograd keeps of each operation, after
    Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022), for
    an attention that keeps no scores. How far this is from what GPUs report stands in
    ``benchmarks/README.md``.

    Linear layers with frozen weights keep no input of their own, but an adapter beside them does,
    so that activations are the same with adapters; with frozen parts they are at most the same.

    Args:
        model, layout: what is trained, and how it is spread.
        trained: which weights.
        fusions: fused kernels, as in ``train.fusions``.
    """
    params = _parameters_of_a_rank(model, layout.tensor_parallel)
    adapters = trained.adapters // layout.tensor_parallel
    updated = adapters
    if trained.frozen is not None:
        updated += params - trained.frozen // layout.tensor_parallel
    tokens = model.sequence_length * layout.micro_batch_size // layout.context_parallel
    split = layout.tensor_parallel
    spread = split if layout.sequence_parallel else 1
    width = 2 if layout.precision == "bf16" else 4
    divided = _attention(model, layout.context_parallel > 1, fusions) + _mlp(model)
    whole_layer = width * tokens * (_between(model) // spread + divided // split)
    kept = {
        "none": whole_layer,
        "selective": whole_layer - width * tokens * _mlp(model) // split,
        "full": width * tokens * model.hidden_size // spread,
    }[layout.recompute]
    # Megatron recomputes the first of the layers.
    layers = min(layout.recompute_layers or model.num_layers, model.num_layers)
    whole_layers = model.num_layers - layers if layout.recompute == "full" else 0
    activations = whole_layers * whole_layer + (model.num_layers - whole_layers) * kept
    # Embeddings, and input and output of the last norm.
    ends = 3 * width * tokens * model.hidden_size // spread
    a_logit = 2 * width if "loss" in fusions else width + 8
    logits = a_logit * tokens * model.output_vocab_size // split
    shares = layout.copies if layout.distributed_optimizer else 1
    recomputed = max(0, _one_layer(model, layout, width * tokens, whole_layer - kept) - logits)
    # An optimizer that keeps float32 weights makes float32 gradients of bf16 ones, when there are
    # no activations any more.
    widened = layout.gradient_bytes == 2 and layout.optimizer_bytes == 12
    wide = 4 * updated // shares if widened else 0
    return Memory(
        weights=width * (params + adapters),
        gradients=layout.gradient_bytes * updated,
        optimizer=(layout.optimizer_bytes if width == 2 else 8) * updated // shares,
        activations=activations + ends,
        logits=logits,
        workspace=max(recomputed, wide - activations - ends - logits),
    )


@cache
def _parameters_of_a_rank(model: ModelConfig, tensor_parallel: int) -> int:
    """Norms and the action head are on every rank, all else is divided."""
    shapes = published_shapes(model)
    same = sum(
        math.prod(shape) for name, shape in shapes.items() if len(shape) == 1 or name in ACTION_MLP
    )
    return same + (model.num_parameters - same) // tensor_parallel


def _between(model: ModelConfig) -> int:
    """Numbers a position that a layer keeps outside of its linear layers.

    Input and output of two norms, or of three with text.
    """
    return (6 if model.context_width else 4) * model.hidden_size


def _attention(model: ModelConfig, exchanged: bool, fusions: Collection[str]) -> int:
    """Elements saved per token: the projection, q and k normed and rotated, and the output.

    Without the fused kernel the norm of q has a copy of its input. Exchanged for context
    parallelism, q, k and v are there twice, as seen on GPUs.
    """
    query = model.num_attention_heads * model.kv_channels
    key = model.num_query_groups * model.kv_channels
    own = 3 * query + 3 * key
    own += 0 if "attention_inputs" in fusions else query
    own += query + 2 * key if exchanged else 0
    return own + 3 * query if model.context_width else own


def _mlp(model: ModelConfig) -> int:
    """Elements saved per token: gate and up projection, and their product after the activation."""
    return 3 * model.ffn_hidden_size


def _one_layer(model: ModelConfig, layout: Layout, token_bytes: int, again: int) -> int:
    """Bytes that the backward pass of a layer needs beside what was kept.

    What it computes ``again``, the gradients inside the feed-forward layer, the gathered sequence
    and its gradient.
    """
    gradients = token_bytes * _mlp(model) // layout.tensor_parallel
    gathered = 2 * token_bytes * model.hidden_size if layout.sequence_parallel else 0
    return again + gradients + gathered
