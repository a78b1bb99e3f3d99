"""Shapes of a model's weights, by their published names. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosmos_hpc.models.config import Architecture

Shape = tuple[int, ...]

#: The head that turns an action into context. There is no published form; these are the names of
#: the module's parameters.
ACTION_MLP = [f"action_mlp.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]


def published_shapes(model: Architecture) -> dict[str, Shape]:
    """Name and shape of every weight of a published checkpoint of this architecture."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    layer: dict[str, Shape] = {"attention_norm": (hidden,), "ffn_norm": (hidden,)}
    layer |= _attention("attention", model, hidden)
    if model.context_width is not None:
        layer["cross_attention_norm"] = (hidden,)
        layer |= _attention("cross_attention", model, model.context_width)
    layer |= {f"feed_forward.w{n}": (ffn, hidden) for n in (1, 3)}
    layer["feed_forward.w2"] = (hidden, ffn)
    shapes: dict[str, Shape] = {
        "model.tok_embeddings.weight": (model.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "model.output.weight": (model.output_vocab_size, hidden),
    }
    for number in range(model.num_layers):
        shapes |= {f"model.layers.{number}.{k}.weight": shape for k, shape in layer.items()}
    return shapes | action_shapes(model)


def action_shapes(model: Architecture) -> dict[str, Shape]:
    """The same of the head for actions; empty without one."""
    if not model.action_width or not model.context_width:
        return {}
    inner, width = model.context_width // 4, model.context_width
    shapes: list[Shape] = [(inner, model.action_width), (inner,), (width, inner), (width,)]
    return dict(zip(ACTION_MLP, shapes, strict=True))


def _attention(name: str, model: Architecture, source: int) -> dict[str, Shape]:
    hidden, width = model.hidden_size, model.kv_channels
    query, key = model.num_attention_heads * width, model.num_query_groups * width
    return {
        f"{name}.wq": (query, hidden),
        f"{name}.wk": (key, source),
        f"{name}.wv": (key, source),
        f"{name}.wo": (hidden, query),
        f"{name}.q_norm": (width,),
        f"{name}.k_norm": (width,),
    }
