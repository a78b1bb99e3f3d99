"""Prompts as embeddings: the encoder half of a T5 model, each different prompt encoded once.

Transformers is imported when it is needed: it takes seconds.
"""

from __future__ import annotations

import gc
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.tokens import TEXT_POSITIONS
from cosmos_hpc.errors import Stopped, WorkError
from cosmos_hpc.runs.fetched import text_encoder_folder
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import Progress, Stopwatch, say


class TextEncoder:
    """The encoder of a T5 model: bf16 on a GPU, float32 on a CPU.

    Of a file that holds the decoder as well, only the encoder is kept in memory: such files are
    mapped, not read completely.

    Args:
        folder: configuration, tokenizer and weights as transformers saves them.
        device: where it runs.

    Raises:
        WorkError: the folder cannot be loaded as one.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        from transformers import AutoTokenizer, T5EncoderModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.device = torch.device(device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        try:
            # A SentencePiece file alone is read as it is: turning it into a fast tokenizer needs a
            # protobuf newer than NeMo's.
            fast = (folder / "tokenizer.json").is_file()
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, use_fast=fast
            )
            model, found = T5EncoderModel.from_pretrained(
                str(folder), local_files_only=True, dtype=dtype, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError) as e:
            if getattr(e, "errno", None):
                raise  # the machine's trouble
            reason = str(e).strip().partition("\n")[0]
            raise WorkError(f"the text encoder in {folder} cannot be loaded: {reason}") from None
        if found["missing_keys"]:
            raise WorkError(
                f"the text encoder in {folder} lacks {sorted(found['missing_keys'])[0]}"
            )
        self._model = model.to(self.device).eval()

    @torch.inference_mode()
    def encode(self, prompt: str) -> tuple[Tensor, bool]:
        """Embedding of a prompt, and whether the prompt had to be cut.

        Alone and at its own length: what it becomes depends on no other prompt, and no work goes
        into padding. Masked padding would not change the rows of the prompt's tokens.

        Returns:
            bf16 ``[TEXT_POSITIONS, width]`` on the CPU, zero after the prompt's tokens; True where
            the prompt has more tokens than that.
        """
        ids = self._tokenizer(prompt, verbose=False).input_ids
        cut = len(ids) > TEXT_POSITIONS
        if cut:
            ids = self._tokenizer(prompt, truncation=True, max_length=TEXT_POSITIONS).input_ids
        hidden = self._model(input_ids=torch.tensor([ids], device=self.device)).last_hidden_state
        embedding = torch.zeros(TEXT_POSITIONS, hidden.shape[-1], dtype=torch.bfloat16)
        embedding[: len(ids)] = hidden[0].to("cpu", torch.bfloat16)
        return embedding, cut


def write_small_text_encoder(folder: Path, width: int) -> None:
    """Write a T5 model of random weights that reads bytes, for machines without a real one.

    Different prompts become different embeddings, which mean nothing.

    Args:
        folder: where to.
        width: of the embeddings.
    """
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    tokenizer = ByT5Tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5EncoderModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def distinct_prompts(run: RunFolder) -> list[str]:
    """The different prompts of a run's pinned videos, in the order of their first use."""
    rows = files.read_jsonl(run.data.videos)
    return list(dict.fromkeys(row["prompt"] for row in rows if "prompt" in row))


def prompt_file(run: RunFolder, prompt: str) -> Path:
    """Where the embedding of a prompt is, or will be."""
    return run.tokens.prompts / f"{hashlib.sha256(prompt.encode()).hexdigest()[:16]}.pt"


def _owned(prompts: list[str], shard: int, shards: int, each: int) -> list[str]:
    """The prompts that a shard encodes: even parts, for as few shards as ``each`` allows.

    Few, since every one loads the text encoder.
    """
    owners = min(shards, -(-len(prompts) // each))
    if shard >= owners:
        return []
    return prompts[len(prompts) * shard // owners : len(prompts) * (shard + 1) // owners]


def _marker(run: RunFolder, shard: int) -> Path:
    return run.tokens.prompts / f"{shard:05d}.json"


def encode_prompts(run: RunFolder, recipe: Recipe, shard: int) -> None:
    """Write the embeddings of the prompts that a shard owns; those of an earlier attempt are kept.

    The text encoder is freed when this returns.

    Raises:
        WorkError: the text encoder cannot be loaded, or gives another width than the model reads.
        Stopped: on request, after a prompt.
    """
    own = _owned(distinct_prompts(run), shard, run.data.num_shards(), recipe.data.prompts_per_shard)
    known: dict[str, Any] = files.read_json(_marker(run, shard)) or {"sha256": {}}
    todo = [prompt for prompt in own if not _is_whole(prompt_file(run, prompt), known["sha256"])]
    if not own or (not todo and known["sha256"]):
        return
    clock = Stopwatch()
    if todo:
        say(f"shard {shard}: {len(own) - len(todo)} of {len(own)} prompts were finished before")
        _encode(run, recipe, f"shard {shard}: prompts", todo, clock)
        free_memory()
    clock.lap("free")
    paths = [prompt_file(run, prompt) for prompt in own]
    marker = {
        "shard": shard,
        "prompts": len(own),
        "sha256": {path.name: files.sha256(path) for path in paths},
        "seconds": {k: round(v, 3) for k, v in clock.seconds.items()},
    }
    files.write_json(_marker(run, shard), marker)


def encode_missing(run: RunFolder, recipe: Recipe, prompts: list[str]) -> None:
    """Write the embeddings of prompts that have none yet.

    The text encoder is freed when this returns.

    Raises:
        WorkError: the text encoder cannot be loaded, or gives another width than the model reads.
        Stopped: on request, after a prompt.
    """
    todo = [prompt for prompt in prompts if not prompt_file(run, prompt).is_file()]
    if todo:
        _encode(run, recipe, "prompts", todo, Stopwatch())
        free_memory()


def _is_whole(path: Path, known: dict[str, str]) -> bool:
    """Whether an embedding is there; where a marker tells its checksum, as it says."""
    expected = known.get(path.name)
    return path.is_file() and (expected is None or expected == files.sha256(path))


def _encode(
    run: RunFolder, recipe: Recipe, what: str, prompts: list[str], clock: Stopwatch
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = TextEncoder(text_encoder_folder(run), device)
    clock.lap("load")
    progress = Progress(what, len(prompts))
    cut = 0
    for done, prompt in enumerate(prompts, 1):
        embedding, too_long = encoder.encode(prompt)
        if embedding.shape[1] != recipe.model.context_width:
            raise WorkError(
                f"the text encoder gives embeddings {embedding.shape[1]} wide, and "
                f"model.context_width is {recipe.model.context_width}"
            )
        if too_long:
            cut += 1
            say(f"cut to {TEXT_POSITIONS} tokens: {prompt[:60]!r}...")
        files.write_atomic(prompt_file(run, prompt), tensor_bytes(embedding))
        clock.lap("encode")
        progress.update(done, f"{cut} cut" if cut else "")
        if run.stop_requested():
            raise Stopped(f"stopped after {done} of {len(prompts)} prompts")


def free_memory() -> None:
    """Return the memory of unused objects to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tensor_bytes(tensor: Tensor) -> bytes:
    """What ``torch.load`` reads; the same tensor gives the same bytes.

    Through memory: ``torch.save`` writes the name of a file into it.
    """
    content = io.BytesIO()
    torch.save(tensor.contiguous(), content)
    return content.getvalue()


def checked_prompts(run: RunFolder, recipe: Recipe) -> dict[str, Path]:
    """The embedding of every prompt of a run, after comparing it with its shard's marker.

    Raises:
        WorkError: one is missing, or is not what the marker says.
    """
    prompts, shards = distinct_prompts(run), run.data.num_shards()
    found: dict[str, Path] = {}
    progress = Progress("prompts checked", len(prompts))
    with ThreadPoolExecutor(files.THREADS) as pool:
        for shard in range(shards):
            own = _owned(prompts, shard, shards, recipe.data.prompts_per_shard)
            paths = [prompt_file(run, prompt) for prompt in own]
            known = (files.read_json(_marker(run, shard)) or {"sha256": {}})["sha256"]
            for prompt, path, digest in zip(own, paths, pool.map(_digest, paths), strict=True):
                if digest is None or digest != known.get(path.name):
                    raise WorkError(
                        f"{path} is not there or not what its shard's marker says; delete "
                        f"{run.tokens.shard(shard)} and submit again"
                    )
                found[prompt] = path
                progress.update(len(found))
    return found


def _digest(path: Path) -> str | None:
    return files.sha256(path) if path.is_file() else None
