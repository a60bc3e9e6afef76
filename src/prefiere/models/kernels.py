"""The forms of attention that a run of queries and its keys go through, and which of them is used where.

``sdpa``: PyTorch's fused kernel. ``dense``: the scores written out, for bf16 on a CPU, where PyTorch's kernel takes
twice as long. ``capped``: scores under tanh (Gemma 2). All take query [S, heads, Q, D], key and value
[S, kv_heads, K, D] and return [S, heads, Q, D]. mask is bool [S, 1, Q, K], true where a query may look; None: causal.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

DENSE = 2**20
"""Scores of one segment and head above which they are not written out."""

BLOCK = 128
"""Causal queries that are written out at a time."""


@cache
def has_varlen(device: torch.device) -> bool:
    """Whether one call of PyTorch's variable-length attention can do a whole row: CUDA from sm80, and a PyTorch whose
    function knows key heads that queries share."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def varlen(*arguments: Any, **options: Any) -> Tensor:
    """PyTorch's variable-length attention, causal with the diagonal at the bottom right; see `has_varlen`."""
    from torch.nn.attention.varlen import varlen_attn

    return cast(Tensor, varlen_attn(*arguments, **options))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float | None) -> Tensor:
    """Attention through the form that measured best for this device, dtype and size."""
    if cap is not None:
        return capped(query, key, value, mask, scale, cap)
    size = query.shape[2] * key.shape[2]
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and size <= DENSE:
        out: Tensor = _Dense.apply(query, key, value, mask, scale)
        return out
    return scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def causal(query: Tensor, key: Tensor) -> Tensor:
    """Bool [1, 1, Q, K], the diagonal at the bottom right."""
    q, k = query.shape[2], key.shape[2]
    return torch.ones(q, k, dtype=torch.bool, device=query.device).tril(k - q)[None, None]


def capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float) -> Tensor:
    """Attention with tanh-capped scores, which no fused kernel on every device has."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = cap * torch.tanh((query @ key.transpose(-1, -2)) * (scale / cap))
    mask = causal(query, key) if mask is None else mask
    return torch.softmax(scores.float().masked_fill(~mask, torch.finfo(torch.float32).min), -1).to(value.dtype) @ value


class _Dense(torch.autograd.Function):
    """Scores in fp32, as the fused kernel has them; probabilities and all other products in the dtype of the query.

    Query heads that share a key head are further queries of it, so that keys and values are never repeated. Causal
    queries go in blocks, each against the keys up to its last one.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        s, heads, q, d = query.shape
        kv, k = key.shape[1:3]
        key_B, value_B = (x.reshape(s * kv, k, d) for x in (key, value))
        wide_B, out, saved = key_B.float(), torch.empty_like(query), []
        blocks = _blocks(q, k) if mask is None else [(slice(0, q), k)]
        for rows, stop in blocks:
            query_B = query[:, :, rows].reshape(s * kv, -1, d)
            with torch.autocast("cpu", enabled=False):  # which would round the scores
                scores = torch.bmm(query_B.float().mul_(scale), wide_B[:, :stop].transpose(1, 2))
            seen = causal(query[:, :, rows], key[:, :, :stop]) if mask is None else mask
            # The smallest number, not minus infinity: a padded query that sees nothing must not become nan.
            hidden = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
            scores.view(s, kv, heads // kv, -1, stop).add_(hidden[:, :, None])
            p = torch.softmax(scores, -1).to(query.dtype)
            out[:, :, rows] = torch.bmm(p, value_B[:, :stop]).view(s, heads, -1, d)
            saved += [query_B, p]
        ctx.save_for_backward(key_B, value_B, *saved)
        ctx.scale, ctx.blocks = scale, blocks
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        key_B, value_B, *saved = ctx.saved_tensors
        s, heads, _, d = grad.shape
        b, k, _ = key_B.shape
        grad_query, grad_key, grad_value = torch.empty_like(grad), *(torch.zeros(b, k, d) for _ in range(2))
        for (rows, stop), query_B, p in zip(ctx.blocks, saved[::2], saved[1::2], strict=True):
            grad_B = grad[:, :, rows].reshape(b, -1, d)
            grad_value[:, :stop] += torch.bmm(p.transpose(1, 2), grad_B)
            grad_p = torch.bmm(grad_B, value_B[:, :stop].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(ctx.scale)
            grad_query[:, :, rows] = torch.bmm(grad_scores, key_B[:, :stop]).view(s, heads, -1, d)
            grad_key[:, :stop] += torch.bmm(grad_scores.transpose(1, 2), query_B)
        return grad_query, *(g.to(grad.dtype).view(s, -1, k, d) for g in (grad_key, grad_value)), None, None


def _blocks(queries: int, keys: int) -> list[tuple[slice, int]]:
    """Runs of about `BLOCK` causal queries, and how many keys the last query of each sees."""
    count = max(1, round(queries / BLOCK))
    stops = [queries * (i + 1) // count for i in range(count)]
    return [(slice(a, b), b + keys - queries) for a, b in zip([0, *stops], stops, strict=False)]
