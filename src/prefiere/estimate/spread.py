"""What one of several processes holds of a run whose weights are spread over them (`models.shard.spread`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from prefiere.estimate.meta_model import bytes_of
from prefiere.models.shard.spread import layers_of
from prefiere.models.trunk import Trunk


@dataclass(frozen=True, slots=True)
class Units:
    """What is put together at a time, in bytes: the largest layer, and what belongs to no layer (embeddings, head).
    layer_gradient, ends_gradient: of their fp32 gradients."""

    layer: int
    ends: int
    layer_gradient: int
    ends_gradient: int

    @classmethod
    def of(cls, trunk: Trunk) -> Units:
        """The units of a trunk, which may be without contents."""
        layers = layers_of(trunk)
        inside = {id(p) for layer in layers for p in layer.parameters()}
        rest = [p for p in trunk.parameters() if id(p) not in inside]
        return cls(
            max((bytes_of(layer) for layer in layers), default=0),
            sum(p.nbytes for p in rest),
            max((sum(4 * p.numel() for p in layer.parameters() if p.requires_grad) for layer in layers), default=0),
            sum(4 * p.numel() for p in rest if p.requires_grad),
        )

    @property
    def together(self) -> int:
        """Weights that are whole at once: the ends, a layer, and the next one, which is fetched meanwhile."""
        return self.ends + 2 * self.layer

    @property
    def message(self) -> int:
        """The largest gradient that is laid out to be summed over processes, besides itself."""
        return max(self.layer_gradient, self.ends_gradient)


def let_go(trunk: nn.Module) -> None:
    """Drop each gradient when it is complete, as a process does that keeps a part of it."""

    def drop(p: nn.Parameter) -> None:
        p.grad = None

    for p in trunk.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(drop)
