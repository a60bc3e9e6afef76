"""The forms of attention that a run of queries and its keys go through, where it is not written out (`tiles`).

``sdpa``: PyTorch's fused kernel. ``capped``: scores under tanh (Gemma 2). ``varlen``: one call for a row, on CUDA. The
first two take query [S, heads, Q, D], key and value [S, kv_heads, K, D] and return [S, heads, Q, D]. mask is bool
[S, 1, Q, K], true where a query may look; None: causal.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


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
    """PyTorch's variable-length attention, causal with the diagonal at the bottom right; see `has_varlen`.

    query [Q, heads, D], key and value [K, kv_heads, D], the segments' rows end to end -> [Q, heads, D].
    """
    from torch.nn.attention.varlen import varlen_attn

    return cast(Tensor, varlen_attn(*arguments, **options))


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float | None
) -> Tensor:
    """Attention through PyTorch's fused kernel, or with capped scores: query [S, heads, Q, D], key and value
    [S, kv_heads, K, D], mask bool [S, 1, Q, K] or None for causal -> [S, heads, Q, D]."""
    if cap is not None:
        return capped(query, key, value, mask, scale, cap)
    return scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def causal(query: Tensor, key: Tensor) -> Tensor:
    """Bool [1, 1, Q, K], true where a query [S, heads, Q, D] may see a key [S, kv_heads, K, D]: the diagonal is at the
    bottom right."""
    q, k = query.shape[2], key.shape[2]
    return torch.ones(q, k, dtype=torch.bool, device=query.device).tril(k - q)[None, None]


def capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float) -> Tensor:
    """Attention with tanh-capped scores, which no fused kernel on every device has. Shapes as for `fused_attention`."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = cap * torch.tanh((query @ key.transpose(-1, -2)) * (scale / cap))
    mask = causal(query, key) if mask is None else mask
    return torch.softmax(scores.float().masked_fill(~mask, torch.finfo(torch.float32).min), -1).to(value.dtype) @ value
