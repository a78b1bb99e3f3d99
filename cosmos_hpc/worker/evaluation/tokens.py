"""How well a model predicts the next token of held-out clips, from the true ones before it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.utils.progress import Progress
from cosmos_hpc.worker.datasets.samples import Epochs

#: Tokens whose logits are looked at together: in float32, 64 000 of each.
_AT_A_TIME = 1024


@torch.inference_mode()
def predict(decoder: CosmosDecoder, samples: Epochs, count: int) -> dict[str, Any]:
    """Loss and accuracy of a decoder over samples, all and per latent frame.

    Args:
        decoder: complete on one device.
        samples: as training reads them; only what has a loss there counts.
        count: how many of them.

    Returns:
        ``loss`` per token (natural logarithm), and the shares ``top1`` and ``top5`` of tokens that
        are the likeliest, or among the five likeliest; and under ``per_latent_frame`` the same of
        each latent frame that is predicted at all, with its number as ``frame``.
    """
    model = decoder.architecture
    frames, per_frame = model.latent_shape[0], model.latent_shape[1] * model.latent_shape[2]
    device = decoder.embedding.word_embeddings.weight.device
    # Of each latent frame: tokens, their loss, and how many were found.
    sums = torch.zeros(frames, 4, dtype=torch.float64, device=device)
    progress = Progress("clips predicted", count)
    for number in range(count):
        sample = {name: tensor.to(device) for name, tensor in samples.sample(number).items()}
        logits = decoder(
            input_ids=sample["tokens"][None],
            context=_batch(sample.get("context")),
            action=_batch(sample.get("action")),
        )[0]
        # A label's place in the clip: begin-of-video shifts it by one.
        place = torch.arange(len(logits), device=device) + 1 - model.special_ids_first
        counted = sample["loss_mask"] > 0
        for chosen in counted.nonzero()[:, 0].split(_AT_A_TIME):
            found = _found(logits[chosen].float(), sample["labels"][chosen])
            sums.index_add_(0, place[chosen] // per_frame, found)
        progress.update(number + 1)
    rows = [{"frame": frame, **_means(row)} for frame, row in enumerate(sums.cpu()) if row[0] > 0]
    return {**_means(sums.sum(0).cpu()), "per_latent_frame": rows}


def _batch(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor[None]


def _found(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each token: one, its loss, and whether it is the likeliest and among five; ``[n, 4]``."""
    loss = F.cross_entropy(logits, labels, reduction="none")
    likely = logits.topk(min(5, logits.shape[-1])).indices == labels[:, None]
    columns = (torch.ones_like(loss), loss, likely[:, 0], likely.any(-1))
    return torch.stack([column.double() for column in columns], 1)


def _means(row: Tensor) -> dict[str, float]:
    count, loss, top1, top5 = row.tolist()
    return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count}
