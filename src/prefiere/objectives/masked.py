"""Sums and moments over ragged sets of tokens, in a form that adds up over micro-batches and processes.

Suffixes: _N scored tokens in a row, _C completions; ``...`` any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefiere.objectives.shapes import of_shape, same_shape


def _wide(x: Tensor) -> Tensor:
    """In float64 where the device has it: long sums then round once, and their order hardly matters."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def segment_sum(values_N: Tensor, segment_N: Tensor, count: int) -> Tensor:
    """Sum of each segment's values: y_c = sum over n with segment_N[n] = c of values_N[n].

    values_N: floats [N]. segment_N: int64 [N] in [0, count). Returns [count] in the dtype of ``values_N``, at least
    fp32; a segment without values sums to 0. A segment's sum does not depend on what else is in the row; on CUDA it
    depends on the order of atomic additions only where float64 rounding decides an fp32 rounding.
    """
    same_shape(rank=1, values_N=values_N, segment_N=segment_N)
    wide = _wide(values_N)
    return wide.new_zeros(count).index_add(0, segment_N, wide).to(torch.promote_types(values_N.dtype, torch.float32))


def masked_moments(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Count, sum and sum of squares of ``values`` where ``mask`` is true: a tensor [3] without gradient.

    Moments of parts add up to the moments of the whole, over micro-batches and over processes (all-reduce with sum).
    """
    same_shape(values=values, mask=mask)
    kept = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    picked = _wide(torch.where(kept, values, torch.zeros_like(values)).detach())
    return torch.stack([kept.sum().to(picked.dtype), picked.sum(), picked.square().sum()])


def mean_and_variance(moments_3: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of what `masked_moments` saw (both nan where it saw nothing)."""
    of_shape((3,), moments_3=moments_3)
    count, total, squares = moments_3
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0.0)


def whiten(values: Tensor, moments_3: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """(values - mean) / sqrt(variance + eps), or with the mean left in: values / sqrt(variance + eps).

    The moments are those of the whole update (`masked_moments`, summed), not of ``values``, so that micro-batches and
    processes do not change the result. Returns the shape and dtype of ``values``.
    """
    of_shape((3,), moments_3=moments_3)
    mean, variance = mean_and_variance(moments_3)
    centred = _wide(values) - mean if shift_mean else _wide(values)
    return (centred * torch.rsqrt(variance + eps)).to(values.dtype)
