"""Fused kernels of one layer and of the loss, beside those of liger-kernel, on one GPU.

    pip install liger-kernel
    python benchmarks/kernels.py [--recipe ar4b]

Forward and backward together, on one clip in bf16, in the shapes of the recipe's model. "plain" is
what the training does without ``train.fusions``. Each row says how far its results, gradients
included, are from float32 ones. Memory is what the operation allocates beside its inputs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from liger_kernel.ops import (
    LigerCrossEntropyFunction,
    LigerFusedLinearCrossEntropyFunction,
    LigerRMSNormFunction,
    LigerRopeFunction,
)
from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.models import fusions
from cosmos_hpc.models.attention_inputs import queries_keys_values
from cosmos_hpc.models.checkpoints.published import one_rank
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.loss import token_losses

EPS = 1e-5
REPEATS, WARM_UP = 20, 5
#: About 20 ms, more than the CPU takes to start any of the operations.
WAIT_CYCLES = 40_000_000
Operation = Callable[..., Tensor]


def measure(operation: Operation, inputs: Sequence[Tensor]) -> tuple[float, float, float]:
    """Median milliseconds that forward and backward take the GPU and the CPU, and GB allocated.

    The GPU waits until the CPU has started all kernels: some take less time than starting them.
    """
    leaves = [x for x in inputs if x.requires_grad]
    gradient = torch.randn_like(operation(*inputs))
    on_gpu, on_cpu = [], []
    for _ in range(WARM_UP + REPEATS):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(WAIT_CYCLES)
        start.record()
        began = time.perf_counter()
        torch.autograd.grad(operation(*inputs), leaves, gradient)
        on_cpu.append(1000 * (time.perf_counter() - began))
        end.record()
        end.synchronize()
        on_gpu.append(start.elapsed_time(end))
    gigabytes = (torch.cuda.max_memory_allocated() - before) / 1e9
    return statistics.median(on_gpu[WARM_UP:]), statistics.median(on_cpu[WARM_UP:]), gigabytes


def results(operation: Operation, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output and all gradients, in float32, on the CPU."""
    leaves = [x for x in inputs if x.requires_grad]
    output = operation(*inputs)
    torch.manual_seed(2)
    gradients = torch.autograd.grad(output, leaves, torch.randn_like(output.float()).to(output))
    return [x.detach().float().cpu() for x in (output, *gradients)]


def wide(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs in float32."""
    return [
        x.detach().float().requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for x in inputs
    ]


def off(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative difference of norms."""
    return max(
        float((a - b).norm() / b.norm()) if b.norm() else 0.0
        for a, b in zip(got, wanted, strict=True)
    )


def random(*shape: int) -> Tensor:
    """Normal numbers in bf16."""
    return torch.randn(*shape, dtype=torch.bfloat16)


def operations(
    model: ModelConfig,
) -> dict[str, tuple[list[Tensor], dict[str, Operation]]]:
    """Inputs of each operation, and its forms; the first is exact where inputs are float32."""
    tokens, hidden, width = model.sequence_length, model.hidden_size, model.kv_channels
    heads, groups = model.num_attention_heads, model.num_query_groups
    angles = torch.rand(tokens, 1, 1, width // 2) * 6
    angles = torch.cat((angles, angles), -1)
    labels = torch.randint(0, model.output_vocab_size, (tokens, 1))
    ranks = torch.distributed.group.WORLD
    assert ranks is not None
    plain_rotary = rope_utils._apply_rotary_pos_emb_bshd

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, EPS)

    def compiled_norm(x: Tensor, weight: Tensor) -> Tensor:
        return fusions.rms_norm(x, weight.shape, weight, EPS)

    def liger_norm(x: Tensor, weight: Tensor) -> Tensor:
        return LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "gemma", False)

    def rotated(rotate: Any) -> Operation:
        return lambda q, k: torch.cat((rotate(q, angles), rotate(k, angles)), 2)

    def liger_rotary(q: Tensor, k: Tensor) -> Tensor:
        # Its own layout; it writes over its inputs, which a training would have to keep.
        turns = (angles.cos()[:, 0], angles.sin()[:, 0])
        q, k = (x.clone().permute(1, 2, 0, 3) for x in (q, k))
        q, k = LigerRopeFunction.apply(q, k, *(x.movedim(0, 1) for x in turns))
        return torch.cat([x.permute(2, 0, 1, 3) for x in (q, k)], 2)

    def projected(norm: Any, rotate: Any) -> Operation:
        def parts(x: Tensor, of_query: Tensor, of_key: Tensor) -> Tensor:
            query, key, value = x.flatten(3).split([x[0, 0, 0, 2:].numel(), width, width], 3)
            query = norm(query.unflatten(3, (-1, width)).flatten(2, 3), of_query)
            return torch.cat((rotate(query, angles), rotate(norm(key, of_key), angles), value), 2)

        return parts

    def projected_at_once(x: Tensor, of_query: Tensor, of_key: Tensor) -> Tensor:
        return torch.cat(queries_keys_values(x, of_query, of_key, angles, EPS), 2)

    def plain_rotation(t: Tensor, turned_by: Tensor) -> Tensor:
        rotated: Tensor = plain_rotary(t, turned_by, rotary_interleaved=False)
        return rotated

    def gradient_of(written: Any) -> Operation:
        def swiglu(y: Tensor) -> Tensor:
            fused_bias_swiglu.swiglu_back = written
            return fused_bias_swiglu.bias_swiglu_impl(y, None)

        return swiglu

    def liger_swiglu(y: Tensor) -> Tensor:
        return LigerFusedGateUpSiLUMulFunction.apply(y.flatten(0, 1))[:, None]

    def plain_losses(x: Tensor, weight: Tensor) -> Tensor:
        return vocab_parallel_cross_entropy((x @ weight.t()).float(), labels).sum()

    def own_losses(x: Tensor, weight: Tensor) -> Tensor:
        return token_losses(x @ weight.t(), labels, ranks).sum()

    def liger_losses(x: Tensor, weight: Tensor) -> Tensor:
        logits = (x @ weight.t()).flatten(0, 1)
        return LigerCrossEntropyFunction.apply(logits, labels[:, 0], None, -100, 0.0, 0.0, "sum")[0]

    def liger_linear(x: Tensor, weight: Tensor) -> Tensor:
        return LigerFusedLinearCrossEntropyFunction.apply(
            x.flatten(0, 1), weight, labels[:, 0], None, None, -100, 0.0, 0.0, "sum"
        )[0]

    return {
        "norm of hidden states": (
            [random(tokens, 1, hidden), random(hidden)],
            {"plain": norm, "cosmos-hpc": compiled_norm, "liger": liger_norm},
        ),
        "rotary": (
            [random(tokens, 1, heads, width), random(tokens, 1, groups, width)],
            {
                "plain": rotated(plain_rotation),
                "cosmos-hpc": rotated(fusions.apply_rotary),
                "liger": liger_rotary,
            },
        ),
        "queries, keys and values": (
            [random(tokens, 1, groups, heads // groups + 2, width), random(width), random(width)],
            {
                "plain": projected(norm, plain_rotation),
                "fused one by one": projected(norm, fusions.apply_rotary),
                "cosmos-hpc": projected_at_once,
            },
        ),
        "SwiGLU": (
            [random(tokens, 1, 2 * model.ffn_hidden_size)],
            {
                "plain": gradient_of(fused_bias_swiglu.swiglu_back),
                "cosmos-hpc": gradient_of(fusions.swiglu_gradient),
                "liger": liger_swiglu,
            },
        ),
        "output layer and loss": (
            [random(tokens, 1, hidden), random(model.output_vocab_size, hidden) / 64],
            {
                "plain": plain_losses,
                "cosmos-hpc": own_losses,
                "liger, cross entropy": liger_losses,
                "liger, with the output layer": liger_linear,
            },
        ),
    }


def main(recipe: str) -> None:
    """Print a row for each form of each operation."""
    one_rank()
    torch.manual_seed(1)
    print(f"{recipe}, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    # Only for what is made here: a default device would cost the CPU time in every call.
    with torch.device("cuda"):
        rows = operations(load_recipe(recipe).model_for_clips())
    for name, (inputs, forms) in rows.items():
        for x in inputs:
            x.requires_grad_()
        exact = results(next(iter(forms.values())), wide(inputs))
        for form, operation in forms.items():
            far = off(results(operation, inputs), exact)
            on_gpu, on_cpu, memory = measure(operation, inputs)
            print(
                f"{name:24} {form:30} {on_gpu:8.3f} ms, CPU {on_cpu:6.3f} ms  {memory:6.2f} GB  "
                f"{far:.4f} from float32",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="ar4b")
    main(parser.parse_args().recipe)
