"""One router for the forward of a model's linear and LoRA layers.

`route` gives each such layer one forward in the place of its class's; nothing else here patches a layer. The forward
asks how the model's products run now (`matmul.Products`, one for each model):

- A linear layer takes its weights as laid out for sampling while a rollout runs, oneDNN for fp32 products on a CPU
  where that was chosen, and PyTorch's own product otherwise.
- A LoRA layer runs as one function (`lora`) where it is plain LoRA on a frozen weight, and as PEFT has it otherwise.

Other libraries come first. A layer to which one has given a forward is not routed, and a layer that one has hooked
is called as a module, never computed around. Parameters, types and what is saved stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from prefiere.kernels.lora import adapted
from prefiere.kernels.matmul import Products
from prefiere.kernels.packed import PackedLinear

_STATE = "_prefiere_products"


def route(model: nn.Module) -> list[nn.Module]:
    """Route every linear and LoRA layer of a model that is not routed yet; returns these (`unroute`).

    Layers that are routed already keep their state, and new ones join it. A copy of a routed model (deepcopy) is
    routed, with a state of its own.
    """
    products = products_of(model)
    added = [m for m in model.modules() if type(m) in _FORWARDS and "forward" not in vars(m)]
    for module in added:
        setattr(module, _STATE, products)
        module.forward = MethodType(_FORWARDS[type(module)], module)
    return added


def unroute(layers: Iterable[nn.Module]) -> None:
    """Give routed layers back as they were."""
    for module in layers:
        del module.forward
        delattr(module, _STATE)


def products_of(model: nn.Module) -> Products:
    """The state of a model or of one of its layers; a new one, which nothing shares, where nothing is routed."""
    return next(_states(model), None) or Products()


def use_onednn(model: nn.Module, on: bool) -> None:
    """Whether fp32 products of a model's routed layers go through oneDNN on a CPU."""
    for products in _states(model):
        products.onednn = on


def _states(model: nn.Module) -> Iterator[Any]:
    return (vars(m)[_STATE] for m in model.modules() if _STATE in vars(m))


def as_made(layer: nn.Module) -> bool:
    """Whether a layer does what its class does: no other library has hooked it, or replaced its forward."""
    own = vars(layer).get("forward")
    ours = own is None or getattr(own, "__func__", None) in _FORWARDS.values()
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return ours and not any(hooks)


def _linear_forward(self: Any, input: Tensor) -> Tensor:
    # The compiler cannot lower the call into oneDNN with weights that change.
    if torch.compiler.is_compiling():
        return torch.nn.functional.linear(input, self.weight, self.bias)
    products: Products = self._prefiere_products
    laid = products.laid(self)
    return products.linear(input, self.weight, self.bias) if laid is None else laid(input)


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = None if args or kwargs else _plain_adapter(self, x)
    if name is None:
        out: Tensor = type(self).forward(self, x, *args, **kwargs)
        return out
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    return adapted(x, a, b, self.base_layer, self.scaling[name], self._prefiere_products)


_FORWARDS: dict[type[nn.Module], Any] = {nn.Linear: _linear_forward, LoraLinear: _lora_forward}


def _plain_adapter(layer: Any, x: Tensor) -> str | None:
    """The one active adapter, where it is plain LoRA on a frozen weight that is dense or packed; else None."""
    if layer.disable_adapters or layer.merged or torch.compiler.is_compiling():
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    base = layer.base_layer
    if len(active) != 1 or active[0] in layer.lora_variant or type(base) not in (nn.Linear, PackedLinear):
        return None
    a, b, dropout = (part[active[0]] for part in (layer.lora_A, layer.lora_B, layer.lora_dropout))
    trained = any(isinstance(t, Tensor) and t.requires_grad for t in (base.weight, base.bias))
    mixed = not torch.is_autocast_enabled(x.device.type) and not x.dtype == a.weight.dtype == b.weight.dtype
    biased = a.bias is not None or b.bias is not None
    dropped = dropout.training and getattr(dropout, "p", 0)
    if trained or mixed or biased or dropped or not all(map(as_made, (base, a, b, dropout))):
        return None
    return str(active[0])
