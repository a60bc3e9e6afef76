"""Linear layers whose fp32 products go through oneDNN (`objectives.products`)."""

from __future__ import annotations

from types import MethodType

from torch import Tensor, nn

from prefiere.objectives.products import linear


def _forward(self: nn.Linear, input: Tensor) -> Tensor:
    return linear(input, self.weight, self.bias)


def through_onednn(model: nn.Module) -> None:
    """Route every plain linear layer of a model. Its parameters, its type and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
