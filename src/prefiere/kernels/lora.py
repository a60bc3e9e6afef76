"""A linear layer under plain LoRA as one function: what PEFT computes, with fewer passes over the activations.

    y = x W^T + s (x A^T) B^T;   dx = g W + s (g B) A,   dA = s (g B)^T x,   dB = s g^T (x A^T)

PEFT casts the input twice, scales and adds a tensor of the output's size, and leaves as much again to the backward.
Here the small products are added in place to the large ones, and rounded with them. Hu et al. 2021 (LoRA), equation 3.
Whatever is not plain LoRA on a frozen dense or packed weight goes PEFT's way.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from prefiere.kernels.linear import forward_through_onednn
from prefiere.kernels.matmul import compute_dtype, product
from prefiere.kernels.packed import PackedLinear


def _matrix(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The frozen weight [I, O], unpacked where it is packed."""
    return layer.dequantize(dtype) if isinstance(layer, PackedLinear) else layer.weight.to(dtype).T


class _Adapted(torch.autograd.Function):
    """x [..., I], a [r, I] and b [O, r] -> [..., O], in ``compute``. The frozen weight is fetched twice, never kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: nn.Linear, scale: float, compute: torch.dtype
    ) -> Tensor:
        rows, small_a, small_b = x.to(compute).reshape(-1, x.shape[-1]), a.to(compute), b.to(compute)
        low = rows @ small_a.T
        out = product(rows, _matrix(layer, compute))
        if layer.bias is not None:
            out += layer.bias
        out.addmm_(low, small_b.T, alpha=scale)
        ctx.save_for_backward(rows, low, small_a, small_b)
        ctx.layer, ctx.scale = layer, scale
        ctx.shape, ctx.dtypes = x.shape, (x.dtype, a.dtype, b.dtype)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, small_a, small_b = ctx.saved_tensors
        need_x, need_a, need_b = ctx.needs_input_grad[:3]
        g = grad.reshape(-1, grad.shape[-1])
        through = (g @ small_b).mul_(ctx.scale)
        grad_x = grad_a = grad_b = None
        if need_x:
            grad_x = product(g, _matrix(ctx.layer, g.dtype).T).addmm_(through, small_a)
            grad_x = grad_x.view(ctx.shape).to(ctx.dtypes[0])
        if need_a:
            grad_a = (through.T @ rows).to(ctx.dtypes[1])
        if need_b:
            grad_b = (g.T @ low).to(ctx.dtypes[2]).mul_(ctx.scale)
        return grad_x, grad_a, grad_b, None, None, None


def _as_made(layer: nn.Module) -> bool:
    """Whether a layer does what its class does: nothing has been hooked to it or put in its forward's place, such as
    weights laid out for sampling (`weights`). `product` does what `linear` puts there."""
    own = vars(layer).get("forward")
    replaced = own is not None and getattr(own, "__func__", None) is not forward_through_onednn
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return not (replaced or any(hooks))


def _plain(self: Any, x: Tensor) -> str | None:
    """The one active adapter, where it is plain LoRA on a frozen weight that is dense or packed; else None."""
    if self.disable_adapters or self.merged or torch.compiler.is_compiling():
        return None
    active = [name for name in self.active_adapters if name in self.lora_A]
    base = self.base_layer
    if len(active) != 1 or active[0] in self.lora_variant or type(base) not in (nn.Linear, PackedLinear):
        return None
    a, b, dropout = (part[active[0]] for part in (self.lora_A, self.lora_B, self.lora_dropout))
    trained = any(isinstance(t, Tensor) and t.requires_grad for t in (base.weight, base.bias))
    mixed = not torch.is_autocast_enabled(x.device.type) and not x.dtype == a.weight.dtype == b.weight.dtype
    biased = a.bias is not None or b.bias is not None
    dropped = dropout.training and getattr(dropout, "p", 0)
    if trained or mixed or biased or dropped or not all(map(_as_made, (base, a, b, dropout))):
        return None
    return str(active[0])


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = None if args or kwargs else _plain(self, x)
    if name is None:
        out: Tensor = type(self).forward(self, x, *args, **kwargs)
    else:
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        out = _Adapted.apply(x, a, b, self.base_layer, self.scaling[name], compute_dtype(x))
    return out


def fuse(model: nn.Module) -> None:
    """Route every LoRA layer of a model. Its parameters, its type and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is LoraLinear:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
