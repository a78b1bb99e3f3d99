"""Clips and prompts as the files that NVIDIA's guide trains on."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_hpc import files
from cosmos_hpc.progress import Progress
from cosmos_hpc.recipes import Recipe
from cosmos_hpc.runs import RunFolder
from cosmos_hpc.worker.dataset import FOLDERS, padded_sequence, split_documents
from cosmos_hpc.worker.documents import open_documents
from cosmos_hpc.worker.texts import checked_prompts, tensor_bytes


def write_samples(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Write a run's joined clips as ``PART_video_I.pt`` and ``PART_prompt_I.pt``, and a table.

    Samples of a part are in an order that follows from the seed of the split and their videos.

    Returns:
        What the stage's marker says of them.

    Raises:
        WorkError: an embedding is missing or damaged.
    """
    prompts = checked_prompts(run, recipe)
    pinned = files.read_jsonl(run.videos)
    clips = [{**pinned[clip["index"]], **clip} for clip in files.read_jsonl(run.clips)]
    parts = split_documents(clips, recipe.data.split)
    final = run.samples
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)

    ids = open_documents(str(run.token_prefix))
    links = Links()
    progress = Progress("samples", len(clips))
    rows: list[dict[str, Any]] = []
    for part, documents in parts.items():
        name = FOLDERS[part]
        for number, document in enumerate(_shuffled(documents, clips, recipe.data.split.seed)):
            clip = clips[document]
            video = temporary / f"{name}_video_{number}.pt"
            sequence = padded_sequence(
                torch.from_numpy(ids[document].astype(np.int64)),
                recipe.model_for_clips().sequence_length,
            )
            video.write_bytes(tensor_bytes(sequence.to(torch.int32)))
            links.link(prompts[clip["prompt"]], temporary / f"{name}_prompt_{number}.pt")
            rows.append(
                {
                    "sample": f"{name}_{number}",
                    "document": document,
                    "video": clip["video"],
                    "prompt": clip["prompt"],
                    "embedding": prompts[clip["prompt"]].name,
                    "sha256": files.sha256(video),
                }
            )
            progress.update(len(rows))
    files.write_jsonl(temporary / "samples.jsonl", rows)
    counts = {f"{FOLDERS[part]}_samples": len(chosen) for part, chosen in parts.items()}
    files.write_json(temporary / "metadata.json", counts)
    sums = {
        f"samples/{file}": files.sha256(temporary / file)
        for file in ("metadata.json", "samples.jsonl")
    }
    files.publish(temporary, final)
    return {**counts, "prompts": len(prompts), "sha256": sums}


def _shuffled(documents: list[int], clips: list[dict[str, Any]], seed: int) -> list[int]:
    """Documents in an order that depends on the seed, their videos and prompts alone."""

    def key(document: int) -> bytes:
        clip = clips[document]
        text = f"{seed}:{clip['video']}:{clip['clip']}:{clip['prompt']}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

    return sorted(documents, key=key)


class Links:
    """Gives files further names that take no space; copies where the file system has no links."""

    def __init__(self) -> None:
        self._current: dict[Path, Path] = {}

    def link(self, source: Path, target: Path) -> None:
        """Make ``target`` a hard link of ``source``, or a copy."""
        try:
            os.link(self._current.get(source, source), target)
        except OSError as e:
            if e.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV):
                raise
            shutil.copyfile(source, target)
            if e.errno == errno.EMLINK:
                # The file has all the names it may have (65 000 on ext4); the copy takes the next.
                self._current[source] = target
