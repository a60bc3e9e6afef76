"""Weights laid out for oneDNN while a model only runs forward on a CPU: its thin matrix products are faster so.

A decoding step multiplies a few rows with every weight, and an ordinary call lays each weight out anew. Laid out once
they are two to three times faster in float32 and up to twice in bfloat16. The copies live as long as the rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn

SMALL = 2**14
"""Weights of fewer entries stay as they are (adapters, mostly)."""
SHARE = 0.25
"""At most this share of the free memory is taken by copies."""
ROWS = 32


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Run the linear layers of a model on a CPU with copies of their weights, which must not change meanwhile.

    In the dtype of autocast where that is on. Without effect on other devices, on quantized layers, and where memory
    is scarce. Sums are rounded in another order than without: about 1e-6 in float32.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and _fits(m)]
    size = sum(m.weight.numel() * m.weight.element_size() for m in layers)
    if not torch.backends.mkldnn.is_available() or size > SHARE * psutil.virtual_memory().available:
        layers = []
    for layer in layers:
        layer.forward = _forward(layer)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _fits(layer: nn.Linear) -> bool:
    w = layer.weight
    plain = w.device.type == "cpu" and w.dtype in (torch.float32, torch.bfloat16)
    return plain and w.numel() >= SMALL and "forward" not in layer.__dict__  # hooks of other libraries stay


def _forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    auto = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else layer.weight.dtype
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(auto), ROWS)
    bias = None if layer.bias is None else layer.bias.detach().to(auto)

    def forward(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(auto), weight, bias, "none", [], "")
        return y

    return forward
