"""Attention of one query to a prefix of the cache, as a Triton kernel. Needs Triton, and a GPU.

Dao et al., "Flash-Decoding for long-context inference" (2023): with one query a sequence there are
too few heads to fill a GPU, so that each head's positions are shared by several programs too, and
their results are merged. How long the prefix is, the kernel reads from the GPU's memory: a captured
step fits any length, and no row after the prefix is read.
"""

# Triton reads the kernel's source: its arguments are no Python objects with types.
# mypy: disable-error-code="no-untyped-def", disallow-untyped-decorators=False

from __future__ import annotations

import functools

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

#: Positions that a program takes at a time.
BLOCK = 64
#: Programs for each multiprocessor, so that some load while others compute.
PROGRAMS = 4
#: Rows and columns that the matrix units take at least.
TILE = 16


@triton.jit
def _attend_part(
    q, keys, values, position, parts, weights, scale, length, HEADS: tl.constexpr,
    TILE_HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE_WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One part of the prefix of one sequence and group, for all query heads of the group.

    Shapes, where a pair is a sequence and a group: ``q`` ``[pairs, HEADS, WIDTH]``, ``keys`` and
    ``values`` ``[pairs, length, WIDTH]``, ``parts`` ``[pairs, HEADS, programs, WIDTH]`` and
    ``weights`` ``[pairs, HEADS, programs]``. ``scale`` is to the base of two, as exponentials here
    are.
    """
    pair = tl.program_id(0).to(tl.int64)
    part, programs = tl.program_id(1), tl.num_programs(1)
    used = (tl.load(position) + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(used, programs), BLOCK) * BLOCK
    first = part * share
    last = tl.minimum(first + share, used)

    heads, channels = tl.arange(0, TILE_HEADS), tl.arange(0, TILE_WIDTH)
    real = (heads[:, None] < HEADS) & (channels[None, :] < WIDTH)
    q_tile = tl.load(
        q + pair * HEADS * WIDTH + heads[:, None] * WIDTH + channels[None, :], mask=real, other=0.0
    )
    largest = tl.full([TILE_HEADS], float("-inf"), tl.float32)
    total = tl.zeros([TILE_HEADS], tl.float32)
    out = tl.zeros([TILE_HEADS, TILE_WIDTH], tl.float32)
    for start in range(first, last, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = rows < last
        place = pair * length * WIDTH + rows[:, None] * WIDTH + channels[None, :]
        there = inside[:, None] & (channels[None, :] < WIDTH)
        k = tl.load(keys + place, mask=there, other=0.0)
        scores = tl.dot(q_tile, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp2(largest - larger)
        p = tl.exp2(scores - larger[:, None])
        v = tl.load(values + place, mask=there, other=0.0)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        largest = larger

    # The last programs have no rows where the prefix is short.
    some = total > 0
    total = tl.where(some, total, 1.0)
    # To the base of e, for a softmax over the parts.
    weight = tl.where(some, (largest + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    slot = (pair * HEADS + heads) * programs + part
    tl.store(weights + slot, weight, mask=heads < HEADS)
    tl.store(parts + slot[:, None] * WIDTH + channels[None, :], out / total[:, None], mask=real)


def attend_in_parts(
    q: Tensor, keys: Tensor, values: Tensor, position: Tensor, programs: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of each sequence's query to the parts of the positions up to its own.

    Args:
        q: ``[batch, heads, 1, channels]``.
        keys, values: contiguous ``[batch, groups, length, channels]``, in the dtype of ``q``.
        position: of the query, int64 ``[1]``; not read on the host.
        programs: parts; by default as many as fill the GPU.

    Returns:
        What each part alone gives, float32 ``[batch, heads, parts, channels]``, and the logarithm
        of its sum of exponentials, float32 ``[batch, heads, parts]``: attention to all is the sum
        of the parts, weighted with the softmax of the logarithms.
    """
    batch, heads, _, width = q.shape
    groups, length = keys.shape[1:3]
    if programs is None:
        wanted = PROGRAMS * _multiprocessors(q.device)
        programs = min(-(-wanted // (batch * groups)), -(-length // BLOCK))
    parts = q.new_empty((batch, heads, programs, width), dtype=torch.float32)
    weights = q.new_empty((batch, heads, programs), dtype=torch.float32)
    each = heads // groups
    _attend_part[(batch * groups, programs)](
        q.contiguous(), keys, values, position, parts, weights,
        1.4426950408889634 / width**0.5, length,
        HEADS=each, TILE_HEADS=max(TILE, triton.next_power_of_2(each)),
        WIDTH=width, TILE_WIDTH=max(TILE, triton.next_power_of_2(width)),
        BLOCK=BLOCK, num_warps=4, num_stages=3,
    )  # fmt: skip
    return parts, weights


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
