"""Shared-prefix attention over the segments of a packed row, registered with transformers as "prefiere".

A segment's queries are a run of the row; its keys are its prompt followed by the queries themselves, causal with the
diagonal aligned at the bottom right. That is what variable-length kernels take: on CUDA from sm80 one call does a row.
Elsewhere segments of similar size are gathered into one call of attention, so that many short answers cost few calls.
Without segments the function is transformers' own "sdpa", so generation and plain forwards stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from prefiere.data.batch import Segment
from prefiere.models.kernels import attend, capped, has_varlen, varlen
from prefiere.objectives.products import compute_dtype

NAME = "prefiere"
PADDING = 1.3
"""A bucket takes a segment while its padded area stays within this factor of the real one..."""
SMALL = 64
"""...or while its queries and keys are at most this long, where a call costs more than the padding."""


@dataclass(frozen=True, slots=True)
class Bucket:
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
class AttentionPlan:
    """The buckets of one packed row, made once and used by every layer. inverse_T puts their outputs back in order.

    query_Q, key_K: the rows of all buckets end to end, gathered at once, as the gradient of a gather is as large as the
    row. flat: the same for one call of a variable-length kernel, where there is one. rows_M: the rows that queries are
    computed for, None for all; other rows of the output are zero. last: the plan of the last layer, where it differs.
    """

    buckets: tuple[Bucket, ...]
    query_Q: Tensor
    key_K: Tensor
    inverse_T: Tensor
    flat: Flat | None = None
    rows_M: Tensor | None = None
    last: AttentionPlan | None = None
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def mask(self, number: int, window: int | None) -> Tensor | None:
        """Bool [S, 1, Q, K] of a bucket, true where a query may look; None where plain causal says it all."""
        bucket = self.buckets[number]
        q, k = bucket.query_SQ.shape[1], bucket.key_SK.shape[1]
        if window is not None and window >= k:
            window = None
        if bucket.causal and window is None:
            return None
        if (number, window) not in self.masks:
            device = bucket.query_SQ.device
            own = bucket.prefix_S[:, None, None] + torch.arange(q, device=device)[None, :, None]
            keys = torch.arange(k, device=device)
            seen = keys <= own
            if window is not None:
                seen &= keys > own - window
            self.masks[number, window] = seen[:, None]
        return self.masks[number, window]


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
    segments: Sequence[Segment], device: torch.device | str = "cpu", reads: Sequence[tuple[int, int]] = ()
) -> AttentionPlan:
    """Sort a row's segments into buckets; with ``reads`` (`PackedBatch`), the last layer runs where it is read."""
    size = max(s.stop for s in segments)
    plan = _plan(segments, size, device)
    if not reads:
        return plan
    kept = trimmed(segments, reads)
    rows = torch.cat([torch.arange(s.start, s.stop) for s in sorted(kept)]).to(device)
    return replace(plan, last=replace(_plan(kept, size, device), rows_M=rows))


def _plan(segments: Sequence[Segment], size: int, device: torch.device | str) -> AttentionPlan:
    order = sorted(
        segments, key=lambda s: (s.prefix_stop > s.prefix_start, s.stop - s.start + s.prefix_stop - s.prefix_start)
    )
    groups = _bucketed(order)
    buckets: list[Bucket] = []
    inverse = np.full(size, sum(_area(m) for m in groups), np.int64)  # one past the end: the row of zeros
    offset = 0
    for members in groups:
        q = max(s.stop - s.start for s in members)
        k = max(s.stop - s.start + s.prefix_stop - s.prefix_start for s in members)
        query = np.zeros((len(members), q), np.int64)
        key = np.zeros((len(members), k), np.int64)
        for i, s in enumerate(members):
            own = np.arange(s.start, s.stop)
            query[i, : len(own)] = own
            keys = np.concatenate([np.arange(s.prefix_start, s.prefix_stop), own])
            key[i, : len(keys)] = keys
            inverse[own] = offset + i * q + np.arange(len(own))
        offset += query.size
        prefix = torch.tensor([s.prefix_stop - s.prefix_start for s in members])
        causal = members[0].prefix_stop == members[0].prefix_start
        buckets.append(
            Bucket(
                torch.from_numpy(query).to(device),
                torch.from_numpy(key).to(device),
                prefix.to(device),
                causal,
            )
        )
    flat = flatten(segments, device) if has_varlen(torch.device(device)) else None
    query_Q = torch.cat([b.query_SQ.flatten() for b in buckets])
    key_K = torch.cat([b.key_SK.flatten() for b in buckets])
    return AttentionPlan(tuple(buckets), query_Q, key_K, torch.from_numpy(inverse).to(device), flat)


def flatten(segments: Sequence[Segment], device: torch.device | str) -> Flat:
    """Segments end to end, in the order of the row."""
    order = sorted(segments)
    queries = [np.arange(s.start, s.stop) for s in order]
    keys = [np.concatenate([np.arange(s.prefix_start, s.prefix_stop), q]) for s, q in zip(order, queries, strict=True)]

    def stops(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.cumsum([0, *(len(p) for p in parts)]).astype(np.int32)).to(device)

    def rows(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    longest = max(map(len, queries)), max(map(len, keys))
    return Flat(rows(queries), rows(keys), stops(queries), stops(keys), *longest)


def _area(members: Sequence[Segment]) -> int:
    return len(members) * max(s.stop - s.start for s in members)


def _bucketed(order: Sequence[Segment]) -> list[list[Segment]]:
    groups: list[list[Segment]] = []
    area = q = k = 0
    for s in order:
        own, keys = s.stop - s.start, s.stop - s.start + s.prefix_stop - s.prefix_start
        wide_q, wide_k, wide_area = max(q, own), max(k, keys), area + own * keys
        padded = (len(groups[-1]) + 1) * wide_q * wide_k if groups else 0
        fits = groups and (groups[-1][0].prefix_stop == groups[-1][0].prefix_start) == (s.prefix_stop == s.prefix_start)
        if fits and (padded <= PADDING * wide_area or (wide_q <= SMALL and wide_k <= SMALL)):
            groups[-1].append(s)
            area, q, k = wide_area, wide_q, wide_k
        else:
            groups.append([s])
            area, q, k = own * keys, own, keys
    return groups


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

    decoding: who takes the query over, or watches, while answers are sampled (`shared`).
    Raises NotImplementedError for variants whose extra inputs (sinks, position biases) it does not know.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if decoding is not None:
        extras = softcap, sliding_window, kwargs.get("s_aux"), kwargs.get("position_bias")
        masked = attention_mask is None or attention_mask.dtype == torch.bool
        made = decoding.attend(module, query, scale, masked and all(x is None for x in extras))
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
    if segments.flat is not None and softcap is None and compute in (torch.bfloat16, torch.float16):
        return _one_call(q_T, k_T, v_T, segments.flat, sliding_window, scale)[None], None
    buckets = segments.buckets
    queries = q_T.index_select(0, segments.query_Q).split([b.query_SQ.numel() for b in buckets])
    keys, values = (x.index_select(0, segments.key_K).split([b.key_SK.numel() for b in buckets]) for x in (k_T, v_T))
    outputs = []
    for number, (bucket, *parts) in enumerate(zip(buckets, queries, keys, values, strict=True)):
        shapes = bucket.query_SQ.shape, bucket.key_SK.shape, bucket.key_SK.shape
        q, k, v = (x.view(*s, *x.shape[1:]).transpose(1, 2) for x, s in zip(parts, shapes, strict=True))
        out = attend(q, k, v, segments.mask(number, sliding_window), scale, softcap)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    if segments.rows_M is not None:
        outputs.append(outputs[0].new_zeros(1, *outputs[0].shape[1:]))
    return torch.cat(outputs).index_select(0, segments.inverse_T)[None], None


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
