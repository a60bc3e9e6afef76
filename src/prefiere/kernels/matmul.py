"""The dtype of matrix products, and in fp32 on a CPU the library that is faster at them.

PyTorch sends fp32 products to MKL. On AMD processors oneDNN, which comes with PyTorch as well, is twice as fast; its
only way in from Python is the fused linear layer of PyTorch's own compiler. bf16 goes through oneDNN anyway.

Suffixes: _N rows, _I inputs, _O outputs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def compute_dtype(x: Tensor) -> torch.dtype:
    """What products of ``x`` (any shape) are computed in: autocast's dtype where autocast is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class LaidOut(NamedTuple):
    """A copy of a layer's weight [O, I] in the order that oneDNN reads, and its bias [O] or None, both in ``dtype``."""

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O] in ``dtype``, without gradient."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return out


@dataclass(eq=False)
class Products:
    """How the matrix products of one model run now. All of its layers share one (`linear.route`).

    onednn: fp32 products on a CPU go through oneDNN. laid_out: layers whose weights are laid out, while a rollout runs.
    """

    onednn: bool = False
    laid_out: dict[nn.Module, LaidOut] = field(default_factory=dict)

    def laid(self, layer: nn.Module) -> LaidOut | None:
        """A layer's weights as laid out; None where they are not, or where a gradient may be asked for."""
        return self.laid_out.get(layer) if self.laid_out and not torch.is_grad_enabled() else None

    def _through_onednn(self, a: Tensor, b: Tensor) -> bool:
        return self.onednn and a.device.type == "cpu" and a.dtype == b.dtype == torch.float32

    def matmul(self, a_NI: Tensor, b_IO: Tensor) -> Tensor:
        """a @ b [N, O], without gradient where it goes through oneDNN."""
        return _onednn(a_NI, b_IO.T) if self._through_onednn(a_NI, b_IO) else a_NI @ b_IO

    def linear(self, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """A linear layer, x [..., I] -> [..., O], differentiable."""
        if not self._through_onednn(x, weight_OI) or torch.is_autocast_enabled("cpu"):
            return torch.nn.functional.linear(x, weight_OI, bias_O)
        out: Tensor = _OneDnnLinear.apply(x, weight_OI)
        return out if bias_O is None else out + bias_O


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    """a @ b^T for matrices [..., k] and [m, k], of any strides."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return out


class _OneDnnLinear(torch.autograd.Function):
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


def measure_onednn(size: int = 512, rounds: int = 20) -> float:
    """How many times faster than PyTorch's default oneDNN is at a square fp32 product of one thread; 0 where it is not
    there.

    The two take turns, and the fastest round of each counts, so that other work on the machine hardly matters.
    """
    if not torch.backends.mkldnn.is_available():
        return 0.0
    a, b = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))  # nobody else's random numbers
    least = [float("inf")] * 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds):
            for i, multiply in enumerate((torch.matmul, lambda x, y: _onednn(x, y.T))):
                began = time.perf_counter()
                multiply(a, b.T)
                least[i] = min(least[i], time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return least[0] / least[1]
