"""Weights laid out for oneDNN while a model only runs forward on a CPU: its thin matrix products are faster so.

A decoding step multiplies a few rows with every weight, and an ordinary call lays each weight out anew. Laid out once
they are two to three times faster in float32 and up to twice in bfloat16. The copies live as long as the rollout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import nn

from prefiere.kernels.linear import as_made, products_of, route, unroute
from prefiere.kernels.matmul import LaidOut, compute_dtype

LEAST_ENTRIES = 2**14
"""Weights of fewer entries stay as they are (adapters, mostly)."""
SHARE_FOR_COPIES = 0.25
"""At most this share of the free memory is taken by copies."""
EXPECTED_ROWS = 32
"""oneDNN picks the order of a weight for so many rows of the other matrix."""


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Run the linear layers of a model on a CPU with copies of their weights, which must not change meanwhile.

    In the dtype of autocast where that is on, and only where no gradient is asked for. Without effect on other devices,
    on quantized layers, on layers that another library has hooked, where memory is scarce, and in bfloat16 on a
    processor for which oneDNN has none. Sums are rounded in another order than without: about 1e-6 in float32. A model
    that is not routed (`linear.route`) is, meanwhile.
    """
    added = route(model)
    layers = [m for m in model.modules() if type(m) is nn.Linear and _fits(m)]
    size = sum(m.weight.numel() * m.weight.element_size() for m in layers)
    if size > SHARE_FOR_COPIES * psutil.virtual_memory().available:
        layers = []
    try:
        for layer in layers:
            products_of(layer).laid_out[layer] = _laid_out(layer)
        yield
    finally:
        for layer in layers:
            products_of(layer).laid_out.pop(layer, None)
        unroute(added)


def _fits(layer: nn.Linear) -> bool:
    w = layer.weight
    floats = w.device.type == "cpu" and w.dtype in (torch.float32, torch.bfloat16)
    return floats and w.numel() >= LEAST_ENTRIES and _has(compute_dtype(w)) and as_made(layer)


def _has(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies in this dtype here."""
    if not torch.backends.mkldnn.is_available():
        return False
    bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or bool(bfloat16)


def _laid_out(layer: nn.Linear) -> LaidOut:
    dtype = compute_dtype(layer.weight)
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), EXPECTED_ROWS)
    return LaidOut(weight, None if layer.bias is None else layer.bias.detach().to(dtype), dtype)
