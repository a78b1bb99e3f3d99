"""Step time, TFLOP/s and memory of a recipe's training on random samples, through NeMo.

    torchrun --standalone --nproc-per-node N benchmarks/training.py RECIPE [key=value ...]

N is the number of GPUs. To measure settings one at a time, each in processes of its own, after the
settings of the recipe without any:

    python benchmarks/training.py --gpus N --switch all --switch overlap RECIPE [key=value ...]

FLOPs are counted by ``ModelConfig.training_flops``. Weights and ids are
random: the first loss should be near ln 64 000 = 11.07.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from msgspec.structs import asdict, replace
from torch import Tensor

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.data.tokens import NUM_IDS, TEXT_POSITIONS
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.planning.layouts import size
from cosmos_hpc.planning.plans import with_layout
from cosmos_hpc.utils.imports import end_quickly, large_imports
from cosmos_hpc.worker.datasets.samples import SampleDataset, conditioned_sample
from cosmos_hpc.worker.stages.train import prepare_device

#: Settings that are worth measuring, by what ``--switch`` calls them; the first beside all others.
SWITCHES = {
    "plain": ["train.fusions=[]"],
    "fused": ["train.fusions=null"],
    "attention-inputs": ["train.fusions=[attention_inputs]"],
    "rotary": ["train.fusions=[rotary]"],
    "norms": ["train.fusions=[norms]"],
    "accumulation": ["train.fusions=[gradient_accumulation]"],
    "swiglu": ["train.fusions=[swiglu]"],
    "adam": ["train.fusions=[adam]"],
    "norm-of-gradients": ["train.fusions=[gradient_norm]"],
    "loss": ["train.fusions=[loss]"],
    "bf16-gradients": ["train.gradient_precision=bf16"],
    "bf16-moments": ["train.moment_precision=bf16"],
    "overlap": ["train.overlap_communication=true"],
    "transformer-engine": ["train.transformer_impl=transformer_engine"],
}


class RandomSamples(SampleDataset):
    """Samples of a recipe's form, made beforehand, so that making them is not measured."""

    def __init__(self, recipe: Recipe, length: int) -> None:
        model = recipe.model_for_clips()
        self.samples = [random_sample(model, index) for index in range(length)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.samples[index]


def random_sample(model: ModelConfig, index: int) -> dict[str, Tensor]:
    """The same for the same index."""
    generator = torch.Generator().manual_seed(index)
    frames, rows, columns = model.latent_shape
    ids = torch.randint(0, NUM_IDS, (frames * rows * columns,), generator=generator)
    if model.context_width is None:
        mask = torch.ones(len(ids))
        mask[-1] = 0
        return {"tokens": ids, "labels": ids.roll(-1), "loss_mask": mask}
    length = model.sequence_length
    if model.action_width:
        action = torch.randn(model.action_width, generator=generator)
        return {**conditioned_sample(ids, length, rows * columns), "action": action}
    context = torch.randn(TEXT_POSITIONS, model.context_width, generator=generator)
    return {**conditioned_sample(ids, length), "context": context}


def main(name: str, overrides: list[str], gpu: str, profile: int = 0) -> None:
    """Train some steps and print what was seen as JSON.

    Args:
        name: of a recipe.
        overrides: settings.
        gpu: type to plan for.
        profile: of the last step, print this many operations that took longest.
    """
    end_quickly()
    prepare_device()
    with large_imports(freeze=True):
        import lightning.pytorch as pl
        from nemo import lightning as nl

        from cosmos_hpc.models.layers import choose_transformer_impl
        from cosmos_hpc.worker.training import nemo
        from cosmos_hpc.worker.training.data import ClipData

    world = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = [] if torch.cuda.is_available() else ["train.precision=fp32"]
    recipe = load_recipe(name, [f"train.gpus={world}", *on_cpu, *overrides])
    gpus = world if torch.cuda.is_available() else 0
    cluster = load_cluster("local", [f"gpus={gpus}", f"parallel={max(1, gpus)}", f"gpu={gpu}"])
    if not gpus:
        cluster = replace(cluster, gpus=0)
    sizing = size(recipe, cluster)
    recipe = with_layout(recipe, sizing.layout)

    class Meter(pl.Callback):
        """Time and loss of each step."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.losses: list[float] = []
            self.profiler = torch.profiler.profile(record_shapes=True)

        def on_train_batch_start(self, *_: Any) -> None:
            if profile and len(self.seconds) == recipe.train.max_steps - 1:
                self.profiler.start()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.started = time.perf_counter()

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.losses.append(round(float(trainer.callback_metrics["reduced_train_loss"]), 4))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(round(time.perf_counter() - self.started, 4))
            if profile and len(self.seconds) == recipe.train.max_steps:
                self.profiler.stop()

    train = recipe.train
    samples = RandomSamples(recipe, train.max_steps * train.global_batch_size)
    meter = Meter()
    with tempfile.TemporaryDirectory() as logs:
        log = nl.NeMoLogger(explicit_log_dir=logs)
        log.ckpt = None
        nemo.fit(recipe, ClipData(samples, None, recipe), [meter], log)
    if profile:
        print_longest(meter.profiler, profile)
    model = recipe.model_for_clips()
    # The first steps compile kernels and create the optimizer's state.
    step = statistics.median(meter.seconds[3:] or meter.seconds)
    flops = model.training_flops(TEXT_POSITIONS) * train.global_batch_size
    report: dict[str, Any] = {
        "recipe": name,
        "layout": str(sizing.layout),
        "fusions": train.fusions,
        "global_batch_size": train.global_batch_size,
        "losses": meter.losses,
        "seconds": meter.seconds,
        "step_seconds": step,
        "ids_per_second": round(train.global_batch_size * model.sequence_length / step),
        "tflops_per_gpu": round(flops / step / world / 1e12, 1),
    }
    if torch.cuda.is_available():
        seen, predicted = torch.cuda.max_memory_allocated(), sizing.memory
        assert predicted is not None
        report |= {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "transformer_impl": choose_transformer_impl(train.transformer_impl),
            "allocated_gb": round(seen / 1e9, 2),
            "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
            "predicted_gb": round(predicted.total / 1e9, 2),
            "predicted_to_seen": round(predicted.total / seen, 3),
            "parts": {k: round(v / 1e9, 2) for k, v in asdict(predicted).items()},
            "predicted_seconds": round(sizing.time.total, 4) if sizing.time else None,
        }
    if int(os.environ.get("RANK", "0")) == 0:
        print("RESULT " + json.dumps(report), flush=True)


def print_longest(profiler: torch.profiler.profile, rows: int) -> None:
    """Print operations, then those of each shape, by the time that they took themselves."""
    time_of = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    for shapes in (False, True):
        found = profiler.key_averages(group_by_input_shape=shapes)
        found.sort(key=lambda row: getattr(row, time_of), reverse=True)
        for row in found[:rows]:
            times = f"{getattr(row, time_of) / 1e3:9.2f} ms {row.count:6} times"
            print(f"{times}  {row.key[:100]} {row.input_shapes if shapes else ''}", flush=True)


def compare(name: str, overrides: list[str], gpu: str, gpus: int, switches: list[str]) -> None:
    """Measure a recipe without switches and with each, and print a line for each."""
    seen: dict[str, float] = {}
    for switch in dict.fromkeys(["plain", *(SWITCHES if "all" in switches else switches)]):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc-per-node={gpus}", __file__, name, f"--gpu={gpu}"),
                *(*overrides, *SWITCHES[switch]),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        results = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
        if not results:
            print(f"{switch:20} failed:\n{done.stdout[-2000:]}", flush=True)
            continue
        report = json.loads(results[0].removeprefix("RESULT "))
        seen[switch] = report["step_seconds"]
        print(
            f"{switch:20} {seen[switch]:.4f} s  {report['tflops_per_gpu']:6.1f} TFLOP/s a GPU  "
            f"{report.get('allocated_gb', 0):6.1f} GB  "
            f"{seen.get('plain', 0) / seen[switch]:.3f} times as fast as plain",
            flush=True,
        )
        print(results[0], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--gpu", default="H200-141")
    parser.add_argument("--profile", type=int, default=0, metavar="ROWS", help="of the last step")
    parser.add_argument("--gpus", type=int, default=1, help="with --switch: ranks")
    parser.add_argument("--switch", action="append", default=[], choices=[*SWITCHES, "all"])
    arguments = parser.parse_intermixed_args()
    if arguments.switch:
        compare(
            arguments.recipe,
            arguments.overrides,
            arguments.gpu,
            arguments.gpus,
            arguments.switch,
        )
    else:
        main(arguments.recipe, arguments.overrides, arguments.gpu, arguments.profile)
