"""Seconds a prompt and memory of the T5-11B encoder, on random weights of its size.

    python benchmarks/text_encoder.py [--layers 24] [--prompts 50]

The encoder is written as transformers saves it, loaded by the package and freed again. Compared
are the package's way (each prompt at its own length) and that of NVIDIA's scripts (each prompt
padded to 512 with a mask), with the same model in the same process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from cosmos_hpc.data.tokens import TEXT_POSITIONS
from cosmos_hpc.worker.tokenizers.texts import TextEncoder, free_memory

PROMPT = "Put the metal pot in front of the yellow cloth, number {}"


def write_random(folder: Path, layers: int, device: str) -> None:
    """A model of the size of google-t5/t5-11b, reading bytes."""
    tokenizer = ByT5Tokenizer()
    config = T5Config(
        vocab_size=32_128,
        d_model=1024,
        d_kv=128,
        d_ff=65_536,
        num_layers=layers,
        num_heads=128,
        dropout_rate=0.0,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        T5EncoderModel(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    tokenizer.save_pretrained(folder)


def seconds(encode: Callable[[str], object], prompts: int) -> float:
    """Median of one call, after some to warm up."""
    taken = []
    for number in range(prompts + 5):
        started = time.perf_counter()
        encode(PROMPT.format(number))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[5:])


def allocated() -> float:
    """GB on the GPU."""
    return round(torch.cuda.memory_reserved() / 1e9, 2) if torch.cuda.is_available() else 0.0


@torch.inference_mode()
def padded(encoder: TextEncoder, prompt: str) -> torch.Tensor:
    """The embedding by way of a padded batch of one."""
    batch = encoder._tokenizer(
        prompt, return_tensors="pt", padding="max_length", max_length=TEXT_POSITIONS
    ).to(encoder.device)
    rows: torch.Tensor = encoder._model(**batch).last_hidden_state[0].cpu()
    rows[int(batch.attention_mask.sum()) :] = 0
    return rows


def main(layers: int, prompts: int) -> None:
    """Measure, and print what was seen as JSON."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random(folder, layers, device)
        free_memory()
        started, before = time.perf_counter(), allocated()
        encoder = TextEncoder(folder, device)
        loaded = time.perf_counter() - started
    during = allocated()
    own, other = encoder.encode(PROMPT)[0].float(), padded(encoder, PROMPT).float()
    times = seconds(encoder.encode, prompts), seconds(partial(padded, encoder), prompts)
    used = allocated()
    del encoder
    free_memory()
    report = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "layers": layers,
        "load_seconds": round(loaded, 1),
        "milliseconds_own_length": round(times[0] * 1e3, 2),
        "milliseconds_padded": round(times[1] * 1e3, 2),
        "times_faster": round(times[1] / times[0], 1),
        "relative_difference": float((own - other).norm() / other.norm()),
        "gb_before_loaded_used_freed": [before, during, used, allocated()],
    }
    print("RESULT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=50)
    arguments = parser.parse_args()
    main(arguments.layers, arguments.prompts)
