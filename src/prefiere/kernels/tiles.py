"""Attention on a CPU, written out tile by tile: faster there than PyTorch's fused kernel, in bf16 by far.

A tile is a run of queries of one segment with every key that they see, the diagonal at the bottom right. Tiles of
similar size share a batched product, whichever segments they come from. The rows of all tiles are gathered at once,
head by head, so that each product gets its operands as they lie in memory. Query heads that share a key head are
further queries of it: keys and values are never repeated.

    p = softmax(scale q k^T), out = p v
    dv = p^T g, ds = p (g v^T - rowsum(p g v^T)), dq = scale ds k, dk = scale ds^T q

Suffixes: _T tokens, _S tiles of a bucket, _Q queries, _K keys, _N and _M rows of all tiles and heads (queries, keys).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefiere.tokens.pack import Segment

TILE_QUERIES = 128
"""About so many queries make a tile."""
LARGEST = 2**20
"""Scores of one segment and head above which they are not written out: the backward keeps their probabilities."""
WRITTEN_OUT_IN = (torch.bfloat16, torch.float32, torch.float64)
"""What is written out; fp16 products take many times as long on a CPU."""


class Tile(NamedTuple):
    """Rows of the queries, and of the keys that the last of them sees."""

    query_Q: np.ndarray
    key_K: np.ndarray


@dataclass(frozen=True, slots=True)
class TileBucket:
    """Tiles of similar size. hidden: what is added to scores, fp32 [tiles, 1, Q, 1, K]: 0, or the smallest number
    where a query may not look. queries, keys: their runs of the gathered rows."""

    hidden: Tensor
    queries: slice
    keys: slice


@dataclass(frozen=True, slots=True)
class Tiles:
    """A packed row as tiles. query_N, key_M: the row of [tokens x heads] that each gathered row comes from, in the
    order (tile, key head, token, query head that shares it). inverse: where the gathered row of each query is, one
    past the end for rows that no tile has. gathered: how many there are."""

    buckets: tuple[TileBucket, ...]
    query_N: Tensor
    key_M: Tensor
    inverse: Tensor
    gathered: int


def fits(segments: Sequence[Segment], query: Tensor, value: Tensor) -> bool:
    """Whether attention over these segments is to be written out, query [T, heads, D], value [T, key heads, D']: on a
    CPU, where values are as wide as queries and no segment has more than ``LARGEST`` scores a head."""
    if query.shape[-1] != value.shape[-1]:
        return False
    largest = max((s.stop - s.start) * (s.stop - s.start + s.prefix_stop - s.prefix_start) for s in segments)
    return query.device.type == "cpu" and query.dtype in WRITTEN_OUT_IN and largest <= LARGEST


def plan_tiles(segments: Sequence[Segment], size: int, heads: int, key_heads: int, window: int | None) -> Tiles:
    """Cut segments into tiles and sort them into buckets. size: tokens of the row; heads, key_heads: of the queries and
    of the keys; window: keys that a query sees, None for all before it."""
    shared = heads // key_heads
    queries, keys, buckets = [], [], []
    inverse = np.full((size, heads), -1, np.int64)
    here = there = 0
    for tiles in bucketed([t for s in sorted(segments) for t in _cut(s, window)]):
        q, k = (max(len(t[side]) for t in tiles) for side in (0, 1))
        # Padding points at row 0. Padded queries are never read, and padded keys are hidden from all others.
        query = np.zeros((len(tiles), key_heads, q, shared), np.int64)
        key = np.zeros((len(tiles), key_heads, k), np.int64)
        place = here + np.arange(query.size).reshape(query.shape)
        for i, t in enumerate(tiles):
            own = t.query_Q[:, None] * heads + np.arange(heads)
            query[i, :, : len(own)] = own.reshape(-1, key_heads, shared).swapaxes(0, 1)
            key[i, :, : len(t.key_K)] = t.key_K * key_heads + np.arange(key_heads)[:, None]
            inverse[t.query_Q] = place[i, :, : len(own)].swapaxes(0, 1).reshape(-1, heads)
        stops = here + query.size, there + key.size
        buckets.append(TileBucket(_hidden(tiles, q, k, window), slice(here, stops[0]), slice(there, stops[1])))
        here, there = stops
        queries.append(query.ravel())
        keys.append(key.ravel())
    inverse[inverse < 0] = here
    query_N, key_M, places = (torch.from_numpy(np.concatenate(x)) for x in (queries, keys, [inverse.ravel()]))
    return Tiles(tuple(buckets), query_N, key_M, places, here)


def _cut(s: Segment, window: int | None) -> Iterator[Tile]:
    own = np.arange(s.start, s.stop)
    keys = np.concatenate([np.arange(s.prefix_start, s.prefix_stop), own])
    for part in np.array_split(np.arange(len(own)), max(1, round(len(own) / TILE_QUERIES))):
        stop = len(keys) - len(own) + int(part[-1]) + 1
        start = max(0, stop - len(part) - window + 1) if window is not None else 0
        yield Tile(own[part], keys[start:stop])


def _hidden(tiles: Sequence[Tile], q: int, k: int, window: int | None) -> Tensor:
    before = np.asarray([len(t.key_K) - len(t.query_Q) for t in tiles])
    last = before[:, None, None] + np.arange(q)[None, :, None]
    key = np.arange(k)
    seen = key <= last
    if window is not None:
        seen &= key > last - window
    # The smallest number, not minus infinity: a padded query that sees nothing must not become nan.
    least = torch.finfo(torch.float32).min
    return torch.zeros(seen.shape).masked_fill_(~torch.from_numpy(seen), least)[:, None, :, None]


def tiled_attention(query_T: Tensor, key_T: Tensor, value_T: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Attention of a packed row: query [T, heads, D], key and value [T, key heads, D] -> [T, heads, D].

    Scores and softmax are in fp32 (or wider), as the fused kernels have them; probabilities and the other products in
    the dtype of the query.
    """
    out: Tensor = _Attention.apply(query_T, key_T, value_T, tiles, scale)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_T: Tensor, key_T: Tensor, value_T: Tensor, tiles: Tiles, scale: float) -> Tensor:
        size = query_T.shape[-1]
        query = query_T.reshape(-1, size).index_select(0, tiles.query_N)
        key, value = (x.reshape(-1, size).index_select(0, tiles.key_M) for x in (key_T, value_T))
        wide = torch.promote_types(query.dtype, torch.float32)
        wide_query, wide_key = query.to(wide, copy=True).mul_(scale), key.to(wide)
        out = query.new_zeros(tiles.gathered + 1, size)  # the last row is what rows without a tile get
        probabilities = []
        with torch.autocast("cpu", enabled=False):  # which would round the scores
            for bucket in tiles.buckets:
                q, k, v, o = _parts(bucket, key_T.shape[1], size, wide_query, wide_key, value, out)
                p = _softmax(q, k, bucket.hidden).to(query.dtype)
                torch.bmm(p, v, out=o)
                probabilities.append(p)
        ctx.tiles, ctx.scale, ctx.shapes = tiles, scale, (query_T.shape, key_T.shape)
        ctx.save_for_backward(query, key, value, *probabilities)
        whole: Tensor = torch.ops.aten._unsafe_view(out.index_select(0, tiles.inverse), list(query_T.shape))
        return whole  # no view to autograd: a model may change it in place

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *probabilities = ctx.saved_tensors
        tiles, (shape, key_shape) = ctx.tiles, ctx.shapes
        size = shape[-1]
        grad = query.new_zeros(tiles.gathered + 1, size).index_copy_(0, tiles.inverse, grad_T.reshape(-1, size))
        grad_query = torch.empty_like(grad)
        grad_query[-1] = 0
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
        for bucket, p in zip(tiles.buckets, probabilities, strict=True):
            q, k, v, g, *grads = _parts(
                bucket, key_shape[1], size, query, key, value, grad, grad_query, grad_key, grad_value
            )
            torch.bmm(p.transpose(1, 2), g, out=grads[2])
            grad_scores = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), p, -1, p.dtype)
            torch.bmm(grad_scores, k, out=grads[0])
            torch.bmm(grad_scores.transpose(1, 2), q, out=grads[1])
        grad_query_T = grad_query.index_select(0, tiles.inverse).view(shape).mul_(ctx.scale)
        grad_key_T, grad_value_T = (_back(g, tiles, key_shape) for g in (grad_key, grad_value))
        return grad_query_T, grad_key_T.mul_(ctx.scale), grad_value_T, None, None


def _parts(
    bucket: TileBucket, key_heads: int, size: int, query: Tensor, key: Tensor, value: Tensor, *like: Tensor
) -> list[Tensor]:
    """A bucket's part of each, one matrix for each tile and key head. like: of queries twice, then of keys twice."""
    count = bucket.hidden.shape[0] * key_heads
    runs = [bucket.queries, bucket.keys, bucket.keys, bucket.queries, bucket.queries, bucket.keys, bucket.keys]
    return [x[r].view(count, -1, size) for x, r in zip((query, key, value, *like), runs, strict=False)]


def _softmax(query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    tiles, _, q, _, k = hidden.shape
    if tiles == 1 and query.shape[1] == q:  # one mask for all: added on the way
        scores = torch.baddbmm(hidden.view(q, k).to(query.dtype), query, key.transpose(1, 2))
    else:
        scores = torch.bmm(query, key.transpose(1, 2))
        scores.view(tiles, -1, q, query.shape[1] // q, k).add_(hidden)
    return torch.softmax(scores, -1)


def _back(grad_M: Tensor, tiles: Tiles, shape: torch.Size) -> Tensor:
    """The gradient of keys or values [T, key heads, D], added up in fp32 where several tiles have the same key."""
    wide = torch.promote_types(grad_M.dtype, torch.float32)
    total = torch.zeros(shape, dtype=wide).view(-1, shape[-1]).index_add_(0, tiles.key_M, grad_M.to(wide))
    return total.to(grad_M.dtype).view(shape)


TILE_PADDING = 1.3
"""A bucket takes a tile while its padded area stays within this factor of the real one..."""
SMALL_TILE = 64
"""...or while its queries and keys are at most this long, where a call costs more than the padding."""


def bucketed(tiles: Sequence[Tile]) -> list[list[Tile]]:
    """Tiles in groups of similar size, the shortest keys first."""
    groups: list[list[Tile]] = []
    area = q = k = 0
    for t in sorted(tiles, key=lambda t: (len(t.key_K), len(t.query_Q))):
        own, keys = len(t.query_Q), len(t.key_K)
        wide_q, wide_k, wide_area = max(q, own), max(k, keys), area + own * keys
        padded = (len(groups[-1]) + 1) * wide_q * wide_k if groups else 0
        if groups and (padded <= TILE_PADDING * wide_area or (wide_q <= SMALL_TILE and wide_k <= SMALL_TILE)):
            groups[-1].append(t)
            area, q, k = wide_area, wide_q, wide_k
        else:
            groups.append([t])
            area, q, k = own * keys, own, keys
    return groups
