"""Seconds and memory of samples, from a video file to an mp4, on one GPU.

    python benchmarks/samples.py [--recipe ar4b ar12b ar13b_v2w] [--batch 1 8] [overrides]

The generate stage as it runs in a job, at full size with random weights, a tokenizer of 100 million
random parameters each way (``random_tokenizer.py``), and for models with text an encoder of the
size of google-t5/t5-11b, written and loaded as transformers does. Of each recipe and number of
samples at the same time: seconds from loading to the last file, a first call that compiles, and a
second one; seconds of the samples alone, from the condition's frames to the files; and the memory
that the GPU gave, beside what the plan says.

``--tiny`` is for a look at the script on a CPU: small models, whatever the recipe.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pipeline_gpu import write_scene
from random_tokenizer import write_random_tokenizer

from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.planning.generation import generation_memory
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.worker.generation.generator import Generator
from cosmos_hpc.worker.stages.generate import generate

TINY = [
    "model.num_layers=2",
    "model.hidden_size=64",
    "model.ffn_hidden_size=96",
    "model.num_attention_heads=4",
    "model.num_query_groups=2",
    "model.kv_channels=16",
    "data.frames=17",
    "data.height=128",
    "data.width=160",
    "train.precision=fp32",
]


def open_run(folder: Path, made: Path, recipe: str, batch: int, overrides: list[str]) -> Any:
    """A run folder for so many samples at the same time, and its recipe."""
    named = load_recipe(recipe)
    text = named.model.context_width and not named.model.action_width
    rows = [
        {"path": f"{number}.mp4", **({"prompt": "a street"} if text else {})}
        for number in range(batch)
    ]
    listed = made / f"{batch}-{recipe}.jsonl"
    files.write_jsonl(listed, ({"video": row["path"], **row} for row in rows))
    resolved = load_recipe(
        recipe,
        [
            f"data.tokenizer={made / 'tokenizer'}",
            f"generate.input={listed}",
            f"generate.batch_size={batch}",
            "train.init_from=null",
            *([f"data.text_encoder={made / 'texts'}"] if text else []),
            *overrides,
        ],
    )
    run = RunFolder(folder)
    run.data.pin(str(made), rows, 1)
    files.write_json(run.info, {"versions": {"torch": torch.__version__}})
    where = {"folder": str(made / "tokenizer"), "text_encoder": str(made / "texts")}
    files.write_json(marker_path(run, "download"), where)
    return run, resolved


class Clock:
    """Seconds that :meth:`Generator.make` takes, of all calls."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._make = Generator.make

    def __enter__(self) -> Clock:
        def timed(*arguments: Any) -> None:
            started = time.perf_counter()
            self._make(*arguments)
            self.seconds += time.perf_counter() - started

        Generator.make = timed  # type: ignore[assignment,method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Generator.make = self._make  # type: ignore[assignment,method-assign]


def measure(folder: Path, made: Path, name: str, batch: int, overrides: list[str]) -> None:
    """Print a line of a first call, and of a second one."""
    for attempt in ("first", "second"):
        run, recipe = open_run(folder / f"{name}-{batch}-{attempt}", made, name, batch, overrides)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        with Clock() as samples:
            generate(run, recipe, 0)
        whole = time.perf_counter() - started
        print(
            f"{name}, {batch} at the same time, {attempt} call: {whole:.1f} s in all, "
            f"{samples.seconds:.1f} s of the samples{_memory(recipe, batch)}",
            flush=True,
        )
    records = run.generated.records()
    assert len(records) == batch, "some samples are missing"


def _memory(recipe: Recipe, batch: int) -> str:
    if not torch.cuda.is_available():
        return ""
    data = recipe.data
    planned = generation_memory(
        recipe.model_for_clips(),
        batch,
        recipe.train.precision,
        data.frames * data.height * data.width,
    )
    peak = torch.cuda.max_memory_allocated() / 1e9
    reserved = torch.cuda.max_memory_reserved() / 1e9
    return f"; {peak:.1f} GB ({reserved:.1f} reserved), planned {planned.total / 1e9:.1f}"


def main(recipes: list[str], batches: list[int], tiny: bool, overrides: list[str]) -> None:
    """Measure all that is asked for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}, numpy {np.__version__}", flush=True)
    overrides = [*(TINY if tiny else []), *overrides]
    data = load_recipe(recipes[0], overrides).data
    shape = (data.frames, data.height, data.width)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made")
        made.mkdir()
        size = (8, 1) if tiny else (160, 2)
        write_random_tokenizer(made / "tokenizer", shape, *size, device, decoder=True)
        for number in range(max(batches)):
            write_scene(made / f"{number}.mp4", number, data.height, data.width)
        models = [load_recipe(recipe).model for recipe in recipes]
        if any(model.context_width and not model.action_width for model in models):
            from text_encoder import write_random

            write_random(made / "texts", 1 if tiny else 24, device)
            if device == "cuda":
                torch.cuda.empty_cache()
        print("the tokenizer and the videos are made", flush=True)
        for recipe in recipes:
            for batch in batches:
                measure(Path(folder), made, recipe, batch, overrides)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", nargs="+", default=["ar4b", "ar12b", "ar13b_v2w"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    main(given.recipe, given.batch, given.tiny, given.overrides)
