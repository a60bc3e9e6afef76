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
        seen = causal(query, key) if mask is None else mask
        out: Tensor = _Dense.apply(query, key, value, seen, scale)
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

    Query heads that share a key head are further queries of it, so that keys and values are never repeated.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        s, heads, q, d = query.shape
        kv, k = key.shape[1:3]
        shape = (s, kv, heads // kv, q, k)
        query_B, key_B, value_B = (x.reshape(s * kv, -1, d) for x in (query, key, value))
        with torch.autocast("cpu", enabled=False):  # which would round the scores
            scores = torch.bmm(query_B.float(), key_B.float().transpose(1, 2)).mul_(scale)
        # The smallest number, not minus infinity: a padded query that sees nothing must not become nan.
        scores.view(shape).masked_fill_(~mask[:, :, None], torch.finfo(torch.float32).min)
        p = torch.softmax(scores, -1).to(query.dtype)
        ctx.save_for_backward(query_B, key_B, value_B, p)
        ctx.scale = scale
        return torch.bmm(p, value_B).view(s, heads, q, d)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query_B, key_B, value_B, p = ctx.saved_tensors
        s, heads, q, d = grad.shape
        grad_B = grad.reshape(p.shape[0], -1, d)
        grad_value = torch.bmm(p.transpose(1, 2), grad_B)
        grad_p = torch.bmm(grad_B, value_B.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(ctx.scale)
        grad_query = torch.bmm(grad_scores, key_B)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query_B)
        kv = p.shape[0] // s
        return grad_query.view(s, heads, q, d), grad_key.view(s, kv, -1, d), grad_value.view(s, kv, -1, d), None, None
