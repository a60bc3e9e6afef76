"""Linear layers whose fp32 products go through oneDNN (`objectives.products`)."""

from __future__ import annotations

from types import MethodType

from torch import Tensor, nn

from prefiere.kernels.matmul import linear


def forward_through_onednn(self: nn.Linear, input: Tensor) -> Tensor:
    """The forward that `through_onednn` gives a layer."""
    return linear(input, self.weight, self.bias)


def through_onednn(model: nn.Module) -> None:
    """Route every plain linear layer of a model. Its parameters, its type and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = MethodType(forward_through_onednn, module)  # type: ignore[method-assign]
