"""Weights of a model as they are stored, whatever the format, read one at a time."""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.checkpoints.weights import Weight, weights_of
from cosmos_hpc.models.config import Architecture
from cosmos_hpc.models.shapes import Shape

#: One layer of everything that there may be, to look names up.
_TEMPLATE = Architecture(
    num_layers=1,
    hidden_size=2,
    ffn_hidden_size=1,
    num_attention_heads=1,
    num_query_groups=1,
    kv_channels=6,
    context_width=4,
    action_width=1,
)


#: Megatron rounds vocabularies up to a multiple of at most this (128 times tensor parallel 8).
VOCABULARY_PADDING = 1024


def same_sizes(found: Architecture, model: Architecture) -> bool:
    """Whether weights of these sizes are of an architecture, but for padded vocabularies."""
    exact = (
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "context_width",
        "action_width",
    )
    return all(getattr(found, name) == getattr(model, name) for name in exact) and all(
        0 <= getattr(found, name) - getattr(model, name) < VOCABULARY_PADDING
        for name in ("vocab_size", "output_vocab_size")
    )


class Weights(ABC):
    """Weights of a model, read one at a time.

    Attributes:
        where: what was opened, for messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    @abstractmethod
    def expect(self, model: Architecture, may_be_new: bool = False) -> None:
        """Compare names and shapes with those of an architecture; drop what pads vocabularies.

        Args:
            model: the architecture.
            may_be_new: heads that base checkpoints lack may be missing.

        Raises:
            RequestError: names the missing, unexpected and misshapen tensors.
        """

    @abstractmethod
    def read(self, weight: Weight) -> Tensor:
        """A weight in Megatron's form, unsplit, in the dtype that it is stored in.

        Raises:
            RequestError: the file is damaged.
        """

    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds all weights as they are stored.

        Raises:
            RequestError: some are no plain floating-point numbers.
        """

    @abstractmethod
    def has(self, weight: Weight) -> bool:
        """Whether the weight is there."""

    @abstractmethod
    def _shape(self, weight: Weight) -> Shape | None:
        """Shape of a weight in Megatron's form; None where there is none."""

    @abstractmethod
    def _layers(self) -> set[int]:
        """Numbers of the layers that have any weight."""

    def sizes(self) -> Architecture:
        """The architecture as far as shapes tell: without YaRN, rotary base and padding.

        Raises:
            RequestError: this is no checkpoint of a Cosmos model.
        """
        try:
            return self._sizes({w.name: self._shape(w) for w in weights_of(_TEMPLATE)})
        except (ValueError, IndexError, ZeroDivisionError):
            raise RequestError(
                f"{self.where} is not a checkpoint of a Cosmos model: the shapes of its weights do "
                f"not fit together"
            ) from None

    def _sizes(self, shapes: Mapping[str, Shape | None]) -> Architecture:
        def get(name: str) -> Shape:
            shape = shapes[f"{name}.weight"]
            if shape is None:
                raise RequestError(
                    f"{self.where} is not a checkpoint of a Cosmos model: it has no {name}.weight "
                    f"nor what that is made of"
                )
            return shape

        width = get("self_attention.q_layernorm")[0]
        query = get("self_attention.linear_proj")[1]
        packed = get("self_attention.linear_qkv")[0]
        text = shapes["cross_attention.linear_kv.weight"]
        action = shapes["action_mlp.0.weight"]
        return Architecture(
            num_layers=1 + max(self._layers(), default=-1),
            hidden_size=get("embedding.word_embeddings")[1],
            ffn_hidden_size=get("mlp.linear_fc2")[1],
            num_attention_heads=query // width,
            num_query_groups=(packed - query) // (2 * width),
            kv_channels=width,
            vocab_size=get("embedding.word_embeddings")[0],
            output_vocab_size=get("output_layer")[0],
            context_width=text[1] if text else None,
            action_width=action[1] if action else None,
        )


#: Others would have to be scaled or rounded to become weights.
_DTYPES = {torch.bfloat16, torch.float16, torch.float32, torch.float64}


def common_dtype(dtypes: set[torch.dtype], where: str) -> torch.dtype:
    """The narrowest dtype that holds all of these.

    Raises:
        RequestError: one is not of plain floating-point numbers.
    """
    others = dtypes - _DTYPES
    if others:
        raise RequestError(f"{where} holds weights of {others.pop()}, which cannot be converted")
    return functools.reduce(torch.promote_types, dtypes)


def layers_in(names: Iterable[str], prefix: str) -> set[int]:
    """Numbers after a prefix, such as ``decoder.layers.``, in names."""
    found = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in names)
    return {int(match[1]) for match in found if match}


def first_line(error: Exception) -> str:
    """What an error of a library says, without its advice."""
    first = str(error).strip().partition("\n")[0]
    return first.partition(". ")[0] or type(error).__name__
