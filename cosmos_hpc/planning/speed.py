"""Time of a training step, as a sum of parts that can be explained.

Rates were set from steps measured on H200s, which the sum meets within a tenth; they stand
in ``benchmarks/README.md``. Those of other GPUs follow from data sheets and were not measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from msgspec import Struct
from msgspec.structs import asdict

from cosmos_hpc.data.tokens import TEXT_POSITIONS
from cosmos_hpc.models.config import FUSIONS, ModelConfig
from cosmos_hpc.planning.memory import EVERYTHING, Layout, Trained, training_memory


class Rates(Struct, frozen=True):
    """What a GPU reaches in these models' training.

    Attributes:
        matrix_products, attention: FLOP/s in bf16; those of attention count its causal half.
        memory: bytes/s of work that reads and writes more than it computes.
        tensor, data: bytes/s between GPUs of a node, of the collectives of tensor and context
            parallelism and of the reduction of gradients.
    """

    matrix_products: float
    attention: float
    memory: float
    tensor: float
    data: float

    def scaled(self, compute: float, memory: float, links: float) -> Rates:
        """Those of a GPU whose data sheet figures are this many times those here."""
        return Rates(
            self.matrix_products * compute,
            self.attention * compute,
            self.memory * memory,
            self.tensor * links,
            self.data * links,
        )


_H200 = Rates(731e12, 415e12, 4.0e12, 241e9, 270e9)
#: By type of GPU. Data sheets: dense bf16 of 312, 989 and 2250 TFLOP/s; memory of 1.56, 2.04, 3.35,
#: 4.8 and 8 TB/s; NVLink of 600, 900 and 1800 GB/s.
RATES = {
    "A100-40": _H200.scaled(312 / 989, 1.56 / 4.8, 600 / 900),
    "A100-80": _H200.scaled(312 / 989, 2.04 / 4.8, 600 / 900),
    "H100-80": _H200.scaled(1, 3.35 / 4.8, 1),
    "H200-141": _H200,
    "B200-192": _H200.scaled(2250 / 989, 8 / 4.8, 1800 / 900),
}
#: Bytes/s of a GPU between nodes: four fifths of a 400 Gb/s adapter each. Assumed.
NETWORK = 40e9
#: Part of a rate that matrix products lose with each halving by tensor or context parallelism.
_SMALLER_PRODUCTS = 0.025
#: Share of the forward pass in all of attention; it has 2 of 7 products. As profiled.
_ATTENTION_FORWARD = 0.25
#: Float32 products run outside of the tensor cores: 67 of 989 TFLOP/s by the data sheet.
_FLOAT32 = 67 / 989

#: How often a step's kernels outside of products read or write a number of each width, set from
#: profiles of the 4B model: the residual stream with its norms, a position and layer; queries of
#: text attention; SwiGLU; the loss, a row of the output layer.
_HIDDEN, _CROSS_QUERIES = 60, 19
_FEED_FORWARD, _FEED_FORWARD_AGAIN, _LOSS = 8, 3, 16
#: The same of queries and keys with norms, rotary and copies: in one kernel, fused one by one, and
#: not fused.
_QUERIES_KEYS_AT_ONCE, _QUERIES_KEYS, _UNFUSED_QUERIES_KEYS = 40, 63, 120
#: Fused kernels without which times of layers are longer.
_OF_LAYERS = frozenset({"attention_inputs", "rotary", "norms", "gradient_accumulation"})
#: The same of queries and keys, where context parallelism packs and unpacks what it exchanges.
_EXCHANGED = 11
#: Share of that work in the forward pass, which full recomputation repeats.
_FORWARD = 0.4
#: Bytes per parameter that Adam reads and writes in a step, by the bytes of its state.
_ADAM = {12: 38, 10: 28, 6: 20}
#: The same of the norm and the zeroing of gradients, without fused kernels and with them.
_UNFUSED_GRADIENTS, _GRADIENTS = 12, 8
#: The same of adding the gradients of a micro batch, with fused kernels and without.
_SUM, _UNFUSED_SUM = 4, 20


class StepTime(Struct, frozen=True):
    """Seconds of a step.

    Attributes:
        matrix_products: of linear layers, with what recomputation repeats.
        attention: the same of attention.
        memory_bound: norms, rotary, activations, sums, the loss.
        optimizer: Adam, and the norm of the gradients.
        communication: all-gathers, reduce-scatters and exchanges that computation waits for.
    """

    matrix_products: float
    attention: float
    memory_bound: float
    optimizer: float
    communication: float

    @property
    def total(self) -> float:
        """All parts."""
        return sum(asdict(self).values())


def step_time(
    model: ModelConfig,
    layout: Layout,
    global_batch_size: int,
    rates: Rates,
    node_gpus: int = 8,
    fusions: Collection[str] = FUSIONS,
    trained: Trained = EVERYTHING,
) -> StepTime:
    """Time of a step with Megatron's distributed optimizer.

    Args:
        model, layout: what is trained, and how it is spread.
        global_batch_size: samples of a step.
        rates: of the GPUs.
        node_gpus: GPUs that are linked by more than the network.
        fusions: fused kernels, as in ``train.fusions``.
        trained: which weights; those of adapters leave out the products for gradients of others.
    """
    batches = global_batch_size / layout.data_parallel
    products, attention = _flops(model, layout, adapters=trained.frozen is None)
    slower = 1 if layout.precision == "bf16" else _FLOAT32
    fused = not _OF_LAYERS.isdisjoint(fusions)
    shared_by = layout.tensor_parallel * layout.context_parallel
    efficiency = slower * (1 - _SMALLER_PRODUCTS * math.log2(shared_by))
    # Those that are trained.
    params = training_memory(model, layout, trained).gradients // layout.gradient_bytes
    added = (_SUM if fused else _UNFUSED_SUM) * params / layout.micro_batch_size
    adam = _ADAM[layout.optimizer_bytes]
    gradients = _GRADIENTS if fused else _UNFUSED_GRADIENTS
    return StepTime(
        matrix_products=batches * products / (rates.matrix_products * efficiency),
        attention=batches * attention / (rates.attention * slower),
        memory_bound=batches * (_token_bytes(model, layout, fusions) + added) / rates.memory,
        optimizer=params * (adam / layout.copies + gradients) / rates.memory,
        communication=batches * _sample_bytes(model, layout) / rates.tensor
        + _data_seconds(layout, params, rates, node_gpus),
    )


def _repeated_share(model: ModelConfig, layout: Layout) -> float:
    """Share of the layers of which all but the input is computed again."""
    if layout.recompute != "full":
        return 0
    return (layout.recompute_layers or model.num_layers) / model.num_layers


def _flops(model: ModelConfig, layout: Layout, adapters: bool) -> tuple[float, float]:
    """Operations of a sample's three passes on one rank: of linear layers, and of attention.

    With adapters linear layers have two: the products of the adapters themselves are small.
    """
    passes = 2 if adapters else 3
    tokens, hidden = model.sequence_length, model.hidden_size
    query, key = _widths(model)
    linear = 2 * tokens * hidden * 2 * (query + key)
    core = 2 * tokens * tokens * query
    if model.context_width:
        linear += 4 * tokens * hidden * query + 4 * TEXT_POSITIONS * key * model.context_width
        core += 4 * tokens * TEXT_POSITIONS * query
    mlp = 6 * tokens * hidden * model.ffn_hidden_size
    again = _repeated_share(model, layout)
    repeated = mlp if layout.recompute == "selective" else again * (linear + mlp)
    products = model.num_layers * (passes * (linear + mlp) + repeated)
    products += 2 * passes * tokens * hidden * model.output_vocab_size
    attention = model.num_layers * 3 * core * (1 + again * _ATTENTION_FORWARD)
    ranks = layout.tensor_parallel * layout.context_parallel
    return products / ranks, attention / ranks


def _token_bytes(model: ModelConfig, layout: Layout, fusions: Collection[str]) -> float:
    """Bytes that kernels outside of products read and write for a sample on one rank."""
    query, key = _widths(model)
    split = layout.tensor_parallel
    text = model.context_width is not None
    hidden = _HIDDEN * (1.5 if text else 1) * model.hidden_size
    if "attention_inputs" in fusions:
        passes = _QUERIES_KEYS_AT_ONCE
    else:
        passes = _UNFUSED_QUERIES_KEYS if _OF_LAYERS.isdisjoint(fusions) else _QUERIES_KEYS
    passes += _EXCHANGED if layout.context_parallel > 1 else 0
    queries = passes * (query + key) + (_CROSS_QUERIES * query if text else 0)
    layer = hidden / (split if layout.sequence_parallel else 1) + queries / split
    layer *= 1 + _FORWARD * _repeated_share(model, layout)
    # The activation is repeated with the products of its layer.
    again = 1 if layout.recompute == "selective" else _repeated_share(model, layout)
    repeated = _FEED_FORWARD_AGAIN * again
    layer += (_FEED_FORWARD + repeated) * model.ffn_hidden_size / split
    loss = _LOSS * model.output_vocab_size / split
    width = 2 if layout.precision == "bf16" else 4
    tokens = model.sequence_length / layout.context_parallel
    return width * tokens * (model.num_layers * layer + loss)


def _sample_bytes(model: ModelConfig, layout: Layout) -> float:
    """Bytes of a sample's collectives among the ranks that share it, that one rank receives.

    Of tensor parallelism a gather before and a scatter after attention, text attention and
    feed-forward layer in each pass; what is gathered again for the gradients of weights overlaps
    with matrix products. Of context parallelism queries, keys, values and the output of attention.
    """
    split, context = layout.tensor_parallel, layout.context_parallel
    tokens = (2 if layout.precision == "bf16" else 4) * model.sequence_length / context
    one = tokens * model.hidden_size * (split - 1) / split
    parts = 3 if model.context_width else 2
    again = _repeated_share(model, layout)
    passes = 2 + again
    if layout.recompute == "selective":
        passes += 1 / parts
    query, key = _widths(model)
    exchanged = tokens * 2 * (query + key) / split * (context - 1) / context
    gathered = one * (model.num_layers * 2 * parts * passes + 6)
    return gathered + exchanged * model.num_layers * (2 + again)


def _data_seconds(layout: Layout, params: int, rates: Rates, node_gpus: int) -> float:
    """Reduce-scatter of gradients and all-gather of weights, once per step."""
    copies = layout.copies
    width = 2 if layout.precision == "bf16" else 4
    moved = (layout.gradient_bytes + width) * params * (copies - 1) / copies
    return moved / (rates.data if layout.gpus <= node_gpus else min(NETWORK, rates.data))


def _widths(model: ModelConfig) -> tuple[int, int]:
    """Widths of queries, and of keys."""
    width = model.kv_channels
    return model.num_attention_heads * width, model.num_query_groups * width
