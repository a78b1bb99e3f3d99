"""Parts of a decoder that a training may freeze. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: How the names of a part's weights begin, in Megatron and in published checkpoints.
_BEGINNINGS = {
    "embedding": ("embedding.", "model.tok_embeddings."),
    "output_layer": ("output_layer.", "model.output."),
}
_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def part(text: str) -> str:
    """The name of a part, checked: ``embedding``, ``output_layer``, ``layers.N``, ``layers.N-M``.

    Raises:
        ValueError: it is none of these.
    """
    layers = _LAYERS.fullmatch(text)
    if text not in _BEGINNINGS and (not layers or int(layers[1]) > int(layers[2] or layers[1])):
        raise ValueError(
            f"{text!r} is no part of a model; there are {', '.join(_BEGINNINGS)}, layers.N and "
            f"layers.N-M, counted from 0"
        )
    return text


def layers_of(parts: Iterable[str]) -> list[int]:
    """Numbers of the layers that some parts name, in order."""
    named = (_LAYERS.fullmatch(text) for text in parts)
    ranges = [range(int(m[1]), int(m[2] or m[1]) + 1) for m in named if m]
    return sorted({number for numbers in ranges for number in numbers})


def belongs(name: str, parts: Iterable[str]) -> bool:
    """Whether a weight, by its name in Megatron or its published one, belongs to one of the parts.

    Args:
        name: of the weight.
        parts: checked ones.
    """
    chosen = list(parts)
    layer = re.match(r"(?:decoder|model)\.layers\.(\d+)\.", name)
    if layer:
        return int(layer[1]) in layers_of(chosen)
    return any(name.startswith(_BEGINNINGS[text]) for text in chosen if text in _BEGINNINGS)
