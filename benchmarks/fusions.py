"""A step of training by Megatron alone, without NeMo, with and without fused kernels, on one GPU.

    python benchmarks/fusions.py RECIPE [--fusions NAME,NAME...]... [--recompute none]

The decoder, Megatron's DDP and its distributed optimizer as the trainer sets them up, on random
samples of one clip. Each set of fusions is measured in a process of its own; without ``--fusions``
these are none, all but one, and all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import Float16Module

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.models.config import FUSIONS
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.fusions import fuse
from cosmos_hpc.models.megatron import megatron_config

STEPS, WARM_UP = 9, 3


def main(name: str, fusions: list[str], recompute: str) -> None:
    """Train some steps and print seconds, losses and memory as JSON."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29531", RANK="0", WORLD_SIZE="1")
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", device_id=torch.device("cuda", 0))
    parallel_state.initialize_model_parallel()
    torch.manual_seed(1234)
    model_parallel_cuda_manual_seed(1234)
    model = load_recipe(name).model_for_clips()
    settings = megatron_config(
        model, False, "local", recompute, bf16=True, params_dtype=torch.bfloat16
    )
    fuse(settings, fusions)
    decoder = CosmosDecoder(settings, model, pre_process=True, post_process=True).cuda()
    # Megatron's DDP and optimizer set what they need in the configuration.
    network = DistributedDataParallel(
        settings,
        DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True),
        Float16Module(settings, decoder),
    )
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=1e-4,
            clip_grad=1.0,
            adam_beta2=0.95,
            bf16=True,
            params_dtype=torch.bfloat16,
            use_distributed_optimizer=True,
        ),
        [network],
    )
    for group in optimizer.param_groups:
        group.update(foreach=False, fused=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64_000, (1, model.sequence_length), generator=generator).cuda()
    condition = {}
    if model.context_width is not None:
        condition["context"] = torch.randn(1, 512, model.context_width, generator=generator).cuda()
    step = partial(_step, network, optimizer, ids, condition)
    seconds, losses = zip(*(step() for _ in range(STEPS)), strict=True)
    median = statistics.median(seconds[WARM_UP:])
    report = {
        "recipe": name,
        "fusions": fusions,
        "recompute": recompute,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "step_seconds": round(median, 4),
        "seconds": [round(x, 4) for x in seconds],
        "tflops": round(model.training_flops(512) / median / 1e12, 1),
        "allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "losses": [round(x, 3) for x in losses],
    }
    print("RESULT " + json.dumps(report), flush=True)


def _step(
    network: Any, optimizer: Any, ids: torch.Tensor, condition: dict[str, torch.Tensor]
) -> tuple[float, float]:
    torch.cuda.synchronize()
    started = time.perf_counter()
    network.zero_grad_buffer()
    optimizer.zero_grad()
    losses = network(input_ids=ids, labels=ids.roll(-1, 1), **condition)
    loss = losses.mean()
    loss.backward()
    network.finish_grad_sync()
    optimizer.step()
    torch.cuda.synchronize()
    return time.perf_counter() - started, float(loss.detach())


def compare(name: str, sets: list[list[str]], recompute: str) -> None:
    """Measure each set of fusions in a process of its own."""
    for fusions in sets:
        words = [name, "--only", ",".join(fusions), "--recompute", recompute]
        done = subprocess.run(
            [sys.executable, __file__, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        results = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
        print(results[0] if results else f"{fusions} failed:\n{done.stdout[-3000:]}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--fusions", action="append", help="names, or nothing for none")
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        main(arguments.recipe, list(filter(None, arguments.only.split(","))), arguments.recompute)
    else:
        asked = arguments.fusions or ["", ",".join(FUSIONS[:-1]), ",".join(FUSIONS)]
        compare(
            arguments.recipe, [list(filter(None, x.split(","))) for x in asked], arguments.recompute
        )
