"""Clips and prompts as the files that NVIDIA's guide trains on."""

from __future__ import annotations

import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.data.parts import FOLDERS
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.utils import files
from cosmos_hpc.utils.links import Links
from cosmos_hpc.utils.progress import Progress
from cosmos_hpc.worker.datasets.documents import open_documents
from cosmos_hpc.worker.datasets.samples import padded_sequence, split_documents
from cosmos_hpc.worker.tokenizers.texts import checked_prompts, tensor_bytes

#: Samples that wait for their turn at a time, of millions.
_AT_A_TIME = 1000


def write_samples(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Write a run's joined clips as ``PART_video_I.pt`` and ``PART_prompt_I.pt``, and a table.

    Samples of a part are in an order that follows from the seed of the split and their videos.

    Returns:
        What the stage's marker says of them.

    Raises:
        WorkError: an embedding is missing or damaged.
    """
    prompts = checked_prompts(run, recipe)
    pinned = files.read_jsonl(run.data.videos)
    clips = [{**pinned[clip["index"]], **clip} for clip in files.read_jsonl(run.tokens.clips)]
    parts = split_documents(clips, recipe.data.split)
    samples = [
        (FOLDERS[part], number, document)
        for part, documents in parts.items()
        for number, document in enumerate(_shuffled(documents, clips, recipe.data.split.seed))
    ]
    final = run.tokens.samples
    temporary = final.with_name(f".{final.name}.tmp")
    # What an earlier attempt has written is compared, not written again.
    temporary.mkdir(parents=True, exist_ok=True)
    rows = _write_files(run, recipe, clips, prompts, samples, temporary)
    files.write_jsonl(temporary / "samples.jsonl", rows)
    counts = {f"{FOLDERS[part]}_samples": len(chosen) for part, chosen in parts.items()}
    files.write_json(temporary / "metadata.json", counts)
    sums = {
        f"samples/{file}": files.sha256(temporary / file)
        for file in ("metadata.json", "samples.jsonl")
    }
    files.publish(temporary, final)
    return {**counts, "prompts": len(prompts), "sha256": sums}


def _write_files(
    run: RunFolder,
    recipe: Recipe,
    clips: list[dict[str, Any]],
    prompts: dict[str, Path],
    samples: list[tuple[str, int, int]],
    folder: Path,
) -> list[dict[str, Any]]:
    """Write both files of each sample (part, number, document); returns the rows of the table."""
    ids = open_documents(str(run.tokens.prefix))
    length = recipe.model_for_clips().sequence_length
    links = Links()

    def write(sample: tuple[str, int, int]) -> dict[str, Any]:
        part, number, document = sample
        clip = clips[document]
        prompt = prompts[clip["prompt"]]
        sequence = padded_sequence(torch.from_numpy(ids[document].astype(np.int64)), length)
        content = tensor_bytes(sequence.to(torch.int32))
        _write_unless_there(folder / f"{part}_video_{number}.pt", content)
        links.link(prompt, folder / f"{part}_prompt_{number}.pt")
        return {
            "sample": f"{part}_{number}",
            "document": document,
            "video": clip["video"],
            "prompt": clip["prompt"],
            "embedding": prompt.name,
            "sha256": hashlib.sha256(content).hexdigest(),
        }

    rows: list[dict[str, Any]] = []
    progress = Progress("samples", len(samples))
    with ThreadPoolExecutor(files.THREADS) as pool:
        for first in range(0, len(samples), _AT_A_TIME):
            rows.extend(pool.map(write, samples[first : first + _AT_A_TIME]))
            progress.update(len(rows))
    kinds = ("video", "prompt")
    names = {f"{part}_{kind}_{number}.pt" for part, number, _ in samples for kind in kinds}
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()  # of an attempt with other clips
    return rows


def _shuffled(documents: list[int], clips: list[dict[str, Any]], seed: int) -> list[int]:
    """Documents in an order that depends on the seed, their videos and prompts alone."""

    def key(document: int) -> bytes:
        clip = clips[document]
        text = f"{seed}:{clip['video']}:{clip['clip']}:{clip['prompt']}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

    return sorted(documents, key=key)


def _write_unless_there(path: Path, content: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return
        path.unlink()  # other runs of a sweep have links to it
    path.write_bytes(content)
