"""Shared-prefix attention over the segments of a packed row, registered with transformers as "prefiere".

A segment's queries are a run of the row; its keys are its prompt followed by the queries themselves, causal with the
diagonal aligned at the bottom right. That is what variable-length kernels take: on CUDA from sm80 one call does a row.
On a CPU attention is written out (`tiles`); elsewhere, and for segments too long for that, segments of similar size are
gathered into one call, so that many short answers cost few calls.
Without segments the function is transformers' own "sdpa", so generation and plain forwards stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from prefiere.kernels.fused import capped, fits_varlen, fused_attention, has_varlen, varlen
from prefiere.kernels.matmul import compute_dtype
from prefiere.kernels.split import Split
from prefiere.kernels.tiles import Tile, Tiles, bucketed, fits, plan_tiles, tiled_attention
from prefiere.tokens.pack import Segment

NAME = "prefiere"


@dataclass(frozen=True, slots=True)
class SegmentBucket:
    """S segments of similar size. query_SQ, key_SK: row indices, padded on the right; prefix_S: prompt lengths."""

    query_SQ: Tensor
    key_SK: Tensor
    prefix_S: Tensor
    causal: bool


@dataclass(frozen=True, slots=True)
class Flat:
    """A row as a variable-length kernel takes it: segments end to end. query_Q, key_K: row indices; query_stop_S1,
    key_stop_S1: int32, where each segment begins and the last one ends; longest_query, longest_key: tokens."""

    query_Q: Tensor
    key_K: Tensor
    query_stop_S1: Tensor
    key_stop_S1: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True, slots=True)
class Buckets:
    """A row's segments in buckets. query_Q, key_K: the rows of all of them end to end, gathered at once, as the
    gradient of a gather is as large as the row. inverse_T: where each token's output is, one past the end for none."""

    buckets: tuple[SegmentBucket, ...]
    query_Q: Tensor
    key_K: Tensor
    inverse_T: Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """How attention goes over one packed row: made once, and used by every layer in the form that it needs.

    size: tokens of the row. rows_M: the rows that queries are computed for, None for all; other rows of the output are
    zero. last: the plan of the last layer, where it differs. split: how processes share the row's tokens, where several
    do; rows_M then counts from this one's first.
    """

    segments: tuple[Segment, ...]
    size: int
    device: torch.device | str
    rows_M: Tensor | None = None
    last: AttentionPlan | None = None
    split: Split | None = None
    made: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def flat(self) -> Flat | None:
        """For one call of a variable-length kernel, where there is one."""
        return flatten(self.segments, self.device) if has_varlen(torch.device(self.device)) else None

    @cached_property
    def in_buckets(self) -> Buckets:
        """For a call for each bucket of similar segments."""
        return _in_buckets(self.segments, self.size, self.device)

    def tiles(self, heads: int, key_heads: int, window: int | None) -> Tiles:
        """For attention that is written out."""
        asked = (heads, key_heads, window)
        if asked not in self.made:
            self.made[asked] = plan_tiles(self.segments, self.size, heads, key_heads, window)
        return cast(Tiles, self.made[asked])

    def mask(self, number: int, window: int | None) -> Tensor | None:
        """Bool [S, 1, Q, K] of a bucket, true where a query may look; None where plain causal says it all."""
        bucket = self.in_buckets.buckets[number]
        q, k = bucket.query_SQ.shape[1], bucket.key_SK.shape[1]
        if window is not None and window >= k:
            window = None
        if bucket.causal and window is None:
            return None
        if (number, window) not in self.made:
            own = bucket.prefix_S[:, None, None] + torch.arange(q, device=self.device)[None, :, None]
            # Padding behind the last query sees what the last one may: a query that sees nothing can become nan.
            own = own.clamp(max=k - 1)
            keys = torch.arange(k, device=self.device)
            seen = keys <= own
            if window is not None:
                seen &= keys > own - window
            self.made[number, window] = seen[:, None]
        return cast(Tensor, self.made[number, window])


def trimmed(segments: Sequence[Segment], reads: Sequence[tuple[int, int]]) -> tuple[Segment, ...]:
    """Segments whose queries are, of each, the run of rows that is read; what comes before it joins the prefix."""
    kept = []
    for s, (first, stop) in zip(segments, reads, strict=True):
        if first < stop and s.prefix_start == s.prefix_stop:
            kept.append(Segment(first, stop, s.start, first))
        elif first < stop:  # prompt and earlier tokens of the completion are not one run: all of its queries stay
            kept.append(Segment(s.start, stop, s.prefix_start, s.prefix_stop))
    return tuple(kept)


@torch.compiler.disable
def plan_attention(
    segments: Sequence[Segment],
    device: torch.device | str = "cpu",
    reads: Sequence[tuple[int, int]] = (),
    split: Split | None = None,
) -> AttentionPlan:
    """How attention goes over these segments of one row; with ``reads`` (`PackedBatch`: for each segment the first row
    that is read and the one past the last), the last layer computes these rows alone; with ``split``, this process has
    some of the row's tokens."""
    size = max(s.stop for s in segments)
    split = split if split is not None and split.shares(size) else None
    last = None
    if reads:
        kept = trimmed(segments, reads)
        own = range(size) if split is None else range(size)[split.run(size)]
        runs = [(max(s.start, own.start), min(s.stop, own.stop)) for s in sorted(kept)]
        rows = torch.cat([torch.arange(start, max(start, stop)) for start, stop in runs]).to(device) - own.start
        last = AttentionPlan(kept, size, device, rows, split=split)
    return AttentionPlan(tuple(segments), size, device, last=last, split=split)


def _in_buckets(segments: Sequence[Segment], size: int, device: torch.device | str) -> Buckets:
    whole = [
        (s.prefix_stop > s.prefix_start, Tile(own, np.concatenate([np.arange(s.prefix_start, s.prefix_stop), own])))
        for s in segments
        for own in [np.arange(s.start, s.stop)]
    ]
    buckets, inverse, offset = [], np.full(size, -1, np.int64), 0
    for causal in (True, False):
        for members in bucketed([t for prefixed, t in whole if prefixed != causal]):
            query, key = (np.zeros((len(members), max(len(t[i]) for t in members)), np.int64) for i in (0, 1))
            for i, t in enumerate(members):
                query[i, : len(t.query_Q)], key[i, : len(t.key_K)] = t.query_Q, t.key_K
                inverse[t.query_Q] = offset + i * query.shape[1] + np.arange(len(t.query_Q))
            offset += query.size
            prefix = torch.tensor([len(t.key_K) - len(t.query_Q) for t in members])
            query_SQ, key_SK = (torch.from_numpy(x).to(device) for x in (query, key))
            buckets.append(SegmentBucket(query_SQ, key_SK, prefix.to(device), causal))
    inverse[inverse < 0] = offset  # one past the end: the row of zeros
    query_Q = torch.cat([b.query_SQ.flatten() for b in buckets])
    key_K = torch.cat([b.key_SK.flatten() for b in buckets])
    return Buckets(tuple(buckets), query_Q, key_K, torch.from_numpy(inverse).to(device))


def flatten(segments: Sequence[Segment], device: torch.device | str) -> Flat:
    """Segments end to end, in the order of the row: their own tokens as queries [Q], prompt and these as keys [K]."""
    order = sorted(segments)
    queries = [np.arange(s.start, s.stop) for s in order]
    keys = [np.concatenate([np.arange(s.prefix_start, s.prefix_stop), q]) for s, q in zip(order, queries, strict=True)]

    def stops(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.cumsum([0, *(len(p) for p in parts)]).astype(np.int32)).to(device)

    def rows(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    longest = max(map(len, queries)), max(map(len, keys))
    return Flat(rows(queries), rows(keys), stops(queries), stops(keys), *longest)


@torch.compiler.disable
def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: AttentionPlan | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    decoding: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, heads, T, D], key, value [1, kv_heads, T, D] -> [1, T, heads, D].

    decoding: who takes the query over, or watches, while answers are sampled (`sample.shared_prefix`).
    Raises NotImplementedError for variants whose extra inputs (sinks, position biases) it does not know.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if decoding is not None:
        extras = softcap, sliding_window, kwargs.get("s_aux"), kwargs.get("position_bias")
        masked = attention_mask is None or attention_mask.dtype == torch.bool
        made = decoding.attend(module, query, key, value, scale, masked and all(x is None for x in extras))
        if made is not None:
            return made, None
    if segments is None:
        if softcap is not None:
            dense = (
                attention_mask if attention_mask is None or attention_mask.dtype == torch.bool else attention_mask >= 0
            )
            return capped(query, key, value, dense, scale, softcap).transpose(1, 2), None
        kwargs["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    unknown = [n for n in ("s_aux", "position_bias") if kwargs.get(n) is not None]
    if unknown or kwargs.get("dropout"):
        raise NotImplementedError(f"packed rows do not support attention with {', '.join(unknown) or 'dropout'}")
    # Rotary positions leave queries and keys in fp32 under autocast; rounded first, they are gathered at half the cost.
    compute = compute_dtype(value)
    q_T, k_T, v_T = (x[0].transpose(0, 1).to(compute) for x in (query, key, value))
    if segments.split is None:
        return _over_row(q_T, k_T, v_T, segments, sliding_window, scale, softcap)[None], None
    parts = segments.split.to_heads(q_T, k_T, v_T, segments.size)
    return segments.split.to_tokens(_over_row(*parts, segments, sliding_window, scale, softcap))[None], None


def _over_row(
    q_T: Tensor, k_T: Tensor, v_T: Tensor, plan: AttentionPlan, window: int | None, scale: float, softcap: float | None
) -> Tensor:
    """Attention over the segments of a row, in the form that suits: [T, heads, D]."""
    if plan.flat is not None and softcap is None and fits_varlen(q_T, v_T):
        return _one_call(q_T, k_T, v_T, plan.flat, window, scale)
    if softcap is None and fits(plan.segments, q_T, v_T):
        return tiled_attention(q_T, k_T, v_T, plan.tiles(q_T.shape[1], k_T.shape[1], window), scale)
    return _by_bucket(q_T, k_T, v_T, plan, window, scale, softcap)


def _by_bucket(
    q_T: Tensor, k_T: Tensor, v_T: Tensor, plan: AttentionPlan, window: int | None, scale: float, softcap: float | None
) -> Tensor:
    row, outputs = plan.in_buckets, []
    queries = q_T.index_select(0, row.query_Q).split([b.query_SQ.numel() for b in row.buckets])
    keys, values = (x.index_select(0, row.key_K).split([b.key_SK.numel() for b in row.buckets]) for x in (k_T, v_T))
    for number, (bucket, *parts) in enumerate(zip(row.buckets, queries, keys, values, strict=True)):
        shapes = bucket.query_SQ.shape, bucket.key_SK.shape, bucket.key_SK.shape
        q, k, v = (x.view(*s, *x.shape[1:]).transpose(1, 2) for x, s in zip(parts, shapes, strict=True))
        out = fused_attention(q, k, v, plan.mask(number, window), scale, softcap)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    if plan.rows_M is not None:
        outputs.append(outputs[0].new_zeros(1, *outputs[0].shape[1:]))
    return torch.cat(outputs).index_select(0, row.inverse_T)


def _one_call(query: Tensor, key: Tensor, value: Tensor, flat: Flat, window: int | None, scale: float) -> Tensor:
    out = varlen(
        query.index_select(0, flat.query_Q),
        key.index_select(0, flat.key_K),
        value.index_select(0, flat.key_K),
        flat.query_stop_S1,
        flat.key_stop_S1,
        flat.longest_query,
        flat.longest_key,
        scale=scale,
        # A window of w tokens holds the query's own: w - 1 to its left.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return torch.zeros_like(query).index_copy(0, flat.query_Q, out)


def register() -> None:
    """Make attn_implementation="prefiere" known to transformers; plain forwards get the masks that "sdpa" gets."""
    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
