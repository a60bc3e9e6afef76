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
    function takes a scale and a window (2.11)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    return {"scale", "window_size"} <= _varlen_parameters()


@cache
def _varlen_parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def fits_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether the variable-length kernel takes heads of this width and dtype: query [Q, heads, D], value
    [K, kv_heads, D]."""
    width = query.shape[-1]
    return query.dtype in (torch.bfloat16, torch.float16) and value.shape[-1] == width <= 256 and width % 8 == 0


def varlen(*arguments: Any, enable_gqa: bool, **options: Any) -> Tensor:
    """PyTorch's variable-length attention, causal with the diagonal at the bottom right; see `has_varlen`.

    query [Q, heads, D], key and value [K, kv_heads, D], the segments' rows end to end -> [Q, heads, D].
    enable_gqa: query heads share key heads. PyTorch 2.11 lets them without being told, later versions must be told.
    """
    from torch.nn.attention import varlen as theirs

    told: dict[str, Any] = {"enable_gqa": enable_gqa} if "enable_gqa" in _varlen_parameters() else {}
    call: Any = theirs.varlen_attn
    return cast(Tensor, call(*arguments, **options, **told))


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
