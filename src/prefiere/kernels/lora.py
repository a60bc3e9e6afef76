"""A linear layer under plain LoRA as one function: what PEFT computes, with fewer passes over the activations.

    y = x W^T + s (x A^T) B^T;   dx = g W + s (g B) A,   dA = s (g B)^T x,   dB = s g^T (x A^T)

PEFT casts the input twice, scales and adds a tensor of the output's size, and leaves as much again to the backward.
Here the small products are added in place to the large ones, and rounded with them. Hu et al. 2021 (LoRA), equation 3.
Which layers run so, the router says (`linear`).

Suffixes: _R rank of the adapter, _I inputs, _O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefiere.kernels.matmul import LaidOut, Products, compute_dtype
from prefiere.kernels.packed import PackedLinear


def adapted(x: Tensor, a_RI: Tensor, b_OR: Tensor, layer: nn.Linear, scale: float, products: Products) -> Tensor:
    """x [..., I] through a frozen layer (dense or packed) and its adapter -> [..., O], differentiable.

    In the dtype of autocast where that is on, else in that of ``x``. ``scale`` is PEFT's: alpha / rank, mostly.
    """
    compute, laid = compute_dtype(x), products.laid(layer)
    if laid is not None and laid.dtype != compute:
        laid = None
    out: Tensor = _Adapted.apply(x, a_RI, b_OR, layer, scale, compute, products, laid)
    return out


def _matrix(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The frozen weight [I, O], unpacked where it is packed."""
    return layer.dequantize(dtype) if isinstance(layer, PackedLinear) else layer.weight.to(dtype).T


class _Adapted(torch.autograd.Function):
    """The frozen weight is fetched twice, never kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        layer: nn.Linear,
        scale: float,
        compute: torch.dtype,
        products: Products,
        laid: LaidOut | None,
    ) -> Tensor:
        rows, small_a, small_b = x.to(compute).reshape(-1, x.shape[-1]), a.to(compute), b.to(compute)
        low = rows @ small_a.T
        if laid is not None:
            out = laid(rows)
        else:
            out = products.matmul(rows, _matrix(layer, compute))
            if layer.bias is not None:
                out += layer.bias
        out.addmm_(low, small_b.T, alpha=scale)
        ctx.save_for_backward(rows, low, small_a, small_b)
        ctx.layer, ctx.scale, ctx.products = layer, scale, products
        ctx.shape, ctx.dtypes = x.shape, (x.dtype, a.dtype, b.dtype)
        # A view, but none to autograd: models change the outputs of their layers in place (OLMo's clip_qkv).
        whole: Tensor = torch.ops.aten._unsafe_view(out, [*x.shape[:-1], out.shape[-1]])
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, small_a, small_b = ctx.saved_tensors
        need_x, need_a, need_b = ctx.needs_input_grad[:3]
        g = grad.reshape(-1, grad.shape[-1])
        through = (g @ small_b).mul_(ctx.scale)
        grad_x = grad_a = grad_b = None
        if need_x:
            grad_x = ctx.products.matmul(g, _matrix(ctx.layer, g.dtype).T).addmm_(through, small_a)
            grad_x = grad_x.view(ctx.shape).to(ctx.dtypes[0])
        if need_a:
            grad_a = (through.T @ rows).to(ctx.dtypes[1])
        if need_b:
            grad_b = (g.T @ low).to(ctx.dtypes[2]).mul_(ctx.scale)
        return grad_x, grad_a, grad_b, *([None] * 5)
