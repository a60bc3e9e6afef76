"""The dtype of matrix products, and in fp32 on a CPU the library that is faster at them.

PyTorch sends fp32 products to MKL. On AMD processors oneDNN, which comes with PyTorch as well, is twice as fast; its
only way in from Python is the fused linear layer of PyTorch's own compiler. bf16 goes through oneDNN anyway.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch import Tensor

_state = {"onednn": False}


def compute_dtype(x: Tensor) -> torch.dtype:
    """What products of ``x`` are computed in: autocast's dtype where autocast is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def use_onednn(on: bool) -> None:
    """Whether fp32 products on a CPU go through oneDNN in this process (`product`, `linear`)."""
    _state["onednn"] = on


def using_onednn() -> bool:
    """What `use_onednn` was last told."""
    return _state["onednn"]


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    """a @ b^T for matrices [n, k] and [m, k], of any strides."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return out


def _fits(a: Tensor, b: Tensor) -> bool:
    return _state["onednn"] and a.device.type == "cpu" and a.dtype == b.dtype == torch.float32


def product(a_nk: Tensor, b_km: Tensor) -> Tensor:
    """a @ b for two matrices, without gradient through oneDNN."""
    return _onednn(a_nk, b_km.T) if _fits(a_nk, b_km) else a_nk @ b_km


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        return (
            _onednn(grad, weight.T) if need_x else None,
            _onednn(grad.flatten(0, -2).T, x.flatten(0, -2).T) if need_weight else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer, x [..., k] and weight [m, k] -> [..., m], differentiable.

    Under torch.compile it is PyTorch's own: the compiler cannot lower the call into oneDNN with weights that change.
    """
    if torch.compiler.is_compiling() or not _fits(x, weight) or torch.is_autocast_enabled("cpu"):
        return torch.nn.functional.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight)
    return out if bias is None else out + bias


@cache
def onednn_gain(size: int = 512) -> float:
    """How many times faster oneDNN is at an fp32 product here; 0 where it is not there."""
    if not torch.backends.mkldnn.is_available():
        return 0.0
    a, b = torch.randn(2, size, size)

    def seconds(f: Any) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            f(a, b.T)
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.matmul) / seconds(lambda x, y: _onednn(x, y.T))
