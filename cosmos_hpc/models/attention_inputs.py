"""Queries, keys and values of self-attention from their projection, as Triton kernels.

Megatron cuts the projection into parts, copies the queries, and passes over queries and keys again
for their norms and for their positions, forward and backward. Here one kernel reads the projection
and writes queries and keys, and another one writes the gradient of the projection. Nothing but the
projection is kept for it. Needs a GPU, or Triton's interpreter.
"""

# Triton reads the kernels' source: their arguments are no Python objects with types.
# mypy: disable-error-code="no-untyped-def", disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from cosmos_hpc.models.positions import turns

#: Programs of the backward pass, each of which adds up a part of the weights' gradients, and warps
#: of each program: as was fastest on an H200, whose 132 multiprocessors have two programs each.
PROGRAMS, WARPS = 264, 4


def queries_keys_values(
    projected: Tensor, query_weight: Tensor, key_weight: Tensor, freqs: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Split, norm queries and keys over each head, and rotate them ("rotate half").

    Args:
        projected: ``[s, b, groups, n + 2, d]``: of each group its n queries, its key and its value;
            d a power of two.
        query_weight, key_weight: of the norms, ``[d]``.
        freqs: angles ``[s, 1, 1, d]``, float32, the same in both halves.
        eps: of the norms.

    Returns:
        Queries ``[s, b, groups * n, d]``, keys and values ``[s, b, groups, d]``, in the dtype of
        ``projected``.
    """
    projected = projected.contiguous()
    query, key, value = _QueriesKeysValues.apply(projected, query_weight, key_weight, freqs, eps)
    return query, key, value


class _QueriesKeysValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
        freqs: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        s, b, groups, slots, d = projected.shape
        query = projected.new_empty(s, b, groups * (slots - 2), d)
        key = projected.new_empty(s, b, groups, d)
        cosine, sine, _ = turns(freqs)
        inputs = projected, query_weight, key_weight, cosine, sine
        _write_queries_keys[(s * b,)](*inputs, query, key, b, eps, **_sizes(projected))
        ctx.save_for_backward(*inputs)
        ctx.eps = eps
        # A view that autograd knows of: the gradient of values is written with the others.
        return query, key, projected[..., -1, :]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        projected, query_weight = ctx.saved_tensors[:2]
        s, b, *_, d = projected.shape
        of_projected = torch.empty_like(projected)
        parts = projected.new_empty(PROGRAMS, 2, d, dtype=torch.float32)
        _write_gradients[(PROGRAMS,)](
            *(x.contiguous() for x in gradients), *ctx.saved_tensors,
            of_projected, parts, s * b, b, ctx.eps, **_sizes(projected),
        )  # fmt: skip
        of_query_weight, of_key_weight = parts.sum(0).to(query_weight.dtype)
        return of_projected, of_query_weight, of_key_weight, None, None


def _sizes(projected: Tensor) -> dict[str, int]:
    """What the kernels are compiled for."""
    groups, slots, d = projected.shape[2:]
    tile = triton.next_power_of_2(groups * slots)
    return {"GROUPS": groups, "SLOTS": slots, "HALF": d // 2, "TILE": tile, "num_warps": WARPS}


@triton.jit
def _write_queries_keys(
    projected, query_weight, key_weight, cosine, sine, query, key, batch, eps,
    GROUPS: tl.constexpr, SLOTS: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Those of one token, from GROUPS * SLOTS rows of ``projected``, of a head each."""
    token = tl.program_id(0).to(tl.int64)
    row, half = tl.arange(0, TILE)[:, None], tl.arange(0, HALF)[None, :]
    group, slot = row // SLOTS, row % SLOTS
    real = row < GROUPS * SLOTS
    is_query, is_key = real & (slot < SLOTS - 2), real & (slot == SLOTS - 2)
    place = (token * GROUPS * SLOTS + row) * 2 * HALF + half
    first, second = _load_halves(projected, place, is_query | is_key, HALF)
    scale = _scale(first, second, eps, HALF)
    weight1, weight2 = _load_weights(query_weight, key_weight, half, is_query, HALF)
    first *= scale * weight1
    second *= scale * weight2
    angle = token // batch * 2 * HALF + half
    cos, sin = tl.load(cosine + angle), tl.load(sine + angle)
    turned1, turned2 = first * cos - second * sin, second * cos + first * sin
    place = ((token * GROUPS + group) * (SLOTS - 2) + slot) * 2 * HALF + half
    _store_halves(query, place, turned1, turned2, is_query, HALF)
    place = (token * GROUPS + group) * 2 * HALF + half
    _store_halves(key, place, turned1, turned2, is_key, HALF)


@triton.jit
def _write_gradients(
    of_query, of_key, of_value, projected, query_weight, key_weight, cosine, sine, of_projected,
    parts, tokens, batch, eps,
    GROUPS: tl.constexpr, SLOTS: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Those of some tokens, and ``parts`` of the weights', ``[programs, 2, 2 * HALF]``."""
    row, half = tl.arange(0, TILE)[:, None], tl.arange(0, HALF)[None, :]
    group, slot = row // SLOTS, row % SLOTS
    real = row < GROUPS * SLOTS
    is_query, is_key = real & (slot < SLOTS - 2), real & (slot == SLOTS - 2)
    is_value = real & (slot == SLOTS - 1)
    weight1, weight2 = _load_weights(query_weight, key_weight, half, is_query, HALF)
    # Of all rows: each is of a query or of a key in every token.
    of_weight1 = tl.zeros([TILE, HALF], tl.float32)
    of_weight2 = tl.zeros([TILE, HALF], tl.float32)
    for index in range(tl.program_id(0), tokens, tl.num_programs(0)):
        token = tl.cast(index, tl.int64)
        place = ((token * GROUPS + group) * (SLOTS - 2) + slot) * 2 * HALF + half
        query1, query2 = _load_halves(of_query, place, is_query, HALF)
        place = (token * GROUPS + group) * 2 * HALF + half
        key1, key2 = _load_halves(of_key, place, is_key, HALF)
        value1, value2 = _load_halves(of_value, place, is_value, HALF)
        turned1, turned2 = query1 + key1, query2 + key2
        # Turned back.
        angle = token // batch * 2 * HALF + half
        cos, sin = tl.load(cosine + angle), tl.load(sine + angle)
        back1, back2 = turned1 * cos + turned2 * sin, turned2 * cos - turned1 * sin
        place = (token * GROUPS * SLOTS + row) * 2 * HALF + half
        x1, x2 = _load_halves(projected, place, is_query | is_key, HALF)
        scale = _scale(x1, x2, eps, HALF)
        x1 *= scale
        x2 *= scale
        of_weight1 += back1 * x1
        of_weight2 += back2 * x2
        back1 *= weight1
        back2 *= weight2
        mean = (tl.sum(back1 * x1, 1) + tl.sum(back2 * x2, 1))[:, None] / (2 * HALF)
        # Values were not changed; all else is zero in their rows.
        out1 = scale * (back1 - x1 * mean) + value1
        out2 = scale * (back2 - x2 * mean) + value2
        _store_halves(of_projected, place, out1, out2, real, HALF)
    # In vectors of HALF: of the query's weight, then of the key's.
    place = parts + tl.program_id(0) * 4 * HALF + tl.arange(0, HALF)
    tl.store(place, tl.sum(tl.where(is_query, of_weight1, 0.0), 0))
    tl.store(place + HALF, tl.sum(tl.where(is_query, of_weight2, 0.0), 0))
    tl.store(place + 2 * HALF, tl.sum(tl.where(is_key, of_weight1, 0.0), 0))
    tl.store(place + 3 * HALF, tl.sum(tl.where(is_key, of_weight2, 0.0), 0))


@triton.jit
def _load_halves(source, place, mask, HALF: tl.constexpr):
    """Both halves of rows, which turn with one another, in float32; zero outside of the mask."""
    first = tl.load(source + place, mask=mask, other=0.0)
    second = tl.load(source + place + HALF, mask=mask, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _store_halves(target, place, first, second, mask, HALF: tl.constexpr):
    tl.store(target + place, first.to(target.dtype.element_ty), mask=mask)
    tl.store(target + place + HALF, second.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _scale(first, second, eps, HALF: tl.constexpr):
    """What norms each row."""
    squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
    return tl.rsqrt(squares / (2 * HALF) + eps)[:, None]


@triton.jit
def _load_weights(query_weight, key_weight, half, is_query, HALF: tl.constexpr):
    """Both halves of the weight that each row has, in float32."""
    query1, query2 = tl.load(query_weight + half), tl.load(query_weight + half + HALF)
    key1, key2 = tl.load(key_weight + half), tl.load(key_weight + half + HALF)
    first, second = tl.where(is_query, query1, key1), tl.where(is_query, query2, key2)
    return first.to(tl.float32), second.to(tl.float32)
