"""Ids a second that ``generate`` draws, beside what memory bandwidth allows and transformers.

    python benchmarks/generation.py [--recipe ar4b] [--batch 1 16] [--prompt 5120] [--new 1024]

Weights and ids are random. The bandwidth is that of a copy on the same GPU, bytes read and written;
the bound is as many steps as it takes to read all weights but the input embedding, and the keys and
values of the positions so far, once a step. The rate of steps is from the time of two calls of
which one draws fewer ids, so that the prompt and a start are not in it; "whole call" has both in
it, after a first call that compiles. transformers' Llama of the same sizes and dtype, without the
norms on queries and keys, generates with its static cache and its own sampler, where it is
installed; models with text or actions have no counterpart.

``--tiny`` is for a look at the script on a CPU: a model of the shape of ``ar_tiny``.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.data.tokens import TEXT_POSITIONS
from cosmos_hpc.models import ModelConfig, cache, generate
from cosmos_hpc.models.checkpoints.published import one_rank
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.megatron import megatron_config
from cosmos_hpc.models.shapes import action_shapes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32

#: Samples this many tokens for ``[batch, prompt]``.
Generate = Callable[[Tensor, int], Tensor]


@dataclass
class Row:
    """A line of the table."""

    what: str
    batch: int
    first_seconds: float
    seconds: float
    call_rate: float
    step_rate: float
    bound: float
    peak_gb: float


def build(model: ModelConfig) -> CosmosDecoder:
    """A random decoder on the device."""
    one_rank()
    if DEVICE.type == "cuda":
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(1)
    settings = megatron_config(
        model,
        DEVICE.type == "cpu",
        "local",
        bf16=torch.bfloat16 == DTYPE,
        params_dtype=DTYPE,
    )
    decoder = CosmosDecoder(settings, model, pre_process=True, post_process=True)
    return decoder.to(DEVICE, DTYPE).eval()


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    """Of one call, to its end on the GPU."""
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started


def copy_bandwidth(gigabytes: float) -> float:
    """Bytes a second of a copy, read and written: the median of twenty."""
    source = torch.ones(int(gigabytes * 1e9 / 4), device=DEVICE)
    target = torch.empty_like(source)
    taken = [seconds(lambda: target.copy_(source)) for _ in range(23)][3:]
    return 2 * source.nbytes / statistics.median(taken)


def bytes_of_step(model: ModelConfig, batch: int, positions: float) -> float:
    """Bytes that a step reads at least, at this many positions of each sequence."""
    key_value = 2 * model.num_layers * model.num_query_groups * model.kv_channels
    # Of the input embedding a step reads a row a sequence; a head for actions is read once.
    unread = model.vocab_size * model.hidden_size
    unread += sum(math.prod(shape) for shape in action_shapes(model).values())
    if model.context_width:
        # So are the weights of the text's keys and values.
        unread += key_value * model.context_width
        positions += 1 if model.action_width else TEXT_POSITIONS
    return (model.num_parameters - unread + batch * key_value * positions) * DTYPE.itemsize


def measure(
    what: str, call: Generate, model: ModelConfig, ids: Tensor, new: int, bandwidth: float
) -> Row:
    """A row of the table, of the faster of two calls."""
    few = max(1, new // 8)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = seconds(partial(call, ids, new))
    peak = torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else 0.0
    long, short = (min(seconds(partial(call, ids, n)) for _ in range(2)) for n in (new, few))
    batch, prompt = ids.shape
    positions = prompt + (few + new) / 2
    return Row(
        what,
        batch,
        first,
        long,
        batch * new / long,
        batch * (new - few) / max(long - short, 1e-9),
        batch * bandwidth / bytes_of_step(model, batch, positions),
        peak,
    )


def condition(model: ModelConfig, batch: int) -> dict[str, Tensor]:
    """A random text or action, for models that read one."""
    if model.action_width:
        return {"action": torch.randn(batch, model.action_width, device=DEVICE)}
    if model.context_width:
        return {"context": torch.randn(batch, TEXT_POSITIONS, model.context_width, device=DEVICE)}
    return {}


def our_call(decoder: CosmosDecoder, conditions: dict[str, Tensor]) -> Generate:
    """``generate`` with the published settings."""
    context, action = conditions.get("context"), conditions.get("action")
    return lambda ids, new: generate(decoder, ids, new, context, action)


def llama_call(model: ModelConfig) -> Generate:
    """The same of transformers' Llama with a static cache, which it compiles on GPUs."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        head_dim=model.kv_channels,
        max_position_embeddings=model.sequence_length,
        attn_implementation="sdpa",
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    torch.set_default_dtype(DTYPE)
    with torch.device(DEVICE):
        llama = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)

    def call(ids: Tensor, new: int) -> Tensor:
        settings = GenerationConfig(
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=True,
            top_p=0.8,
            top_k=0,
            cache_implementation="static",
            pad_token_id=0,
        )
        out: Any = llama.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
        assert out.shape[1] == ids.shape[1] + new
        return out

    return call


def free() -> None:
    """Give memory back between models."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def print_table(rows: list[Row], bandwidth: float) -> None:
    """As Markdown."""
    print(f"copy: {bandwidth / 1e12:.3f} TB/s read and written\n")
    print(
        "| | batch | first call s | call s | tokens/s, complete call | tokens/s, steps "
        "| bound tokens/s | steps to bound | peak GB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r.what} | {r.batch} | {r.first_seconds:.1f} | {r.seconds:.2f} | {r.call_rate:.1f} "
            f"| {r.step_rate:.1f} | {r.bound:.1f} | {r.step_rate / r.bound:.3f} | {r.peak_gb:.1f} |"
        )


def main(arguments: argparse.Namespace) -> None:
    """Measure all, print a table and one line of JSON."""
    tiny = arguments.tiny
    model = load_recipe("ar_tiny" if tiny else arguments.recipe).model_for_clips()
    prompt, new = (60, 32) if tiny else (arguments.prompt, arguments.new)
    batches = [1, 2] if tiny else arguments.batch
    cache.COMPILE = not arguments.eager
    cache.INDUCTOR_OPTIONS["coordinate_descent_tuning"] = not arguments.cublas
    bandwidth = copy_bandwidth(0.2 if tiny else 4)
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(0, model.output_vocab_size, (batch, prompt), generator=generator).to(DEVICE)
        for batch in batches
    ]
    rows = []
    decoder = build(model)
    for ids in prompts:
        call = our_call(decoder, condition(model, len(ids)))
        rows.append(measure("cosmos_hpc", call, model, ids, new, bandwidth))
        print(rows[-1], flush=True)
    del decoder, call
    free()
    alone = model.context_width is None and not arguments.skip_transformers
    if alone and importlib.util.find_spec("transformers"):
        other = llama_call(model)
        for ids in prompts:
            rows.append(measure("transformers", other, model, ids, new, bandwidth))
            print(rows[-1], flush=True)
    print_table(rows, bandwidth)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    report = {
        "device": name,
        "torch": torch.__version__,
        "dtype": str(DTYPE),
        "prompt": prompt,
        "new": new,
        "bandwidth": bandwidth,
        "rows": [vars(row) for row in rows],
    }
    print("RESULT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="ar4b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=5120)
    parser.add_argument("--new", type=int, default=1024)
    parser.add_argument("--tiny", action="store_true", help="a small model, on a CPU too")
    parser.add_argument("--eager", action="store_true", help="a captured step without compiling")
    parser.add_argument("--cublas", action="store_true", help="cuBLAS for all products")
    parser.add_argument("--skip-transformers", action="store_true")
    main(parser.parse_args())
