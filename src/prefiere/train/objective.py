"""What a method gives to the engine: unreduced loss terms that name their denominators, and metrics.

The engine divides each term by its denominator's count over the whole update, all micro-batches and processes together,
so that an objective never sees how an update was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from prefiere.models.measure import Found
from prefiere.models.trunk import Trunk
from prefiere.tokens.groups import GroupStore
from prefiere.tokens.pack import PackedBatch

Name = TypeVar("Name", bound=Hashable)
Denominator = Literal["groups", "weight", "tokens"]


class Term(NamedTuple):
    """Unreduced loss values, already weighted, and what the engine divides their sum by: the number of groups of the
    update, the sum of their weights, or the weighted number of scored tokens."""

    values: Tensor
    per: Denominator


class Metric(NamedTuple):
    """One value for each group of a micro-batch [G] (or each completion, or token), and its weight where they do not
    count alike."""

    values_G: Tensor
    weight_G: Tensor | None = None


class Result(NamedTuple):
    """What an objective makes of a micro-batch."""

    terms: list[Term]
    metrics: dict[str, Metric]


class Over(Protocol):
    """Runs an objective's forward over a store's groups, without gradients, cut into micro-batches as an update is."""

    def __call__(
        self, store: GroupStore, members: np.ndarray, work: Callable[[Any, PackedBatch], Mapping[Name, Tensor]]
    ) -> list[Found[Name]]:
        """What ``work`` makes of each micro-batch's forward, of all processes, in the same order in each of them."""


class Objective:
    """What to minimise. Bound to one store: ``batch.index_G`` says which of its groups are in the micro-batch.

    reference: float32 [n, k], the log-prob of each completion under the policy as it was before the run, where the loss
    compares with it. noise: margins within it are ties. logged: metrics that an update keeps of each group (`singles`).
    """

    logged: tuple[str, ...] = ()
    reference: np.ndarray | None = None
    noise: float = 0.0

    def prepare(self, members: np.ndarray, over: Over) -> None:
        """Take what the loss needs to know of the whole update first (KTO's baseline): by default nothing."""

    def prepare_unmoved(self) -> None:
        """The same where the policy is the reference still, so that nothing has to be computed for it."""

    def forward(self, trunk: Trunk, batch: PackedBatch) -> Any:
        """What the loss needs of the trunk, computed in the run's precision: by default `TargetLogprobs`."""
        return trunk(batch)

    def singles(self, index: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of the ``logged`` metrics of groups (``index`` [n]), what pairs.jsonl says of each: columns [n]."""
        return {}

    def __call__(self, out: Any, batch: PackedBatch) -> Result:
        """Loss terms and metrics of one micro-batch, given its forward."""
        raise NotImplementedError


def sum_terms(terms: Sequence[Term], counts: dict[str, float]) -> Tensor:
    """A micro-batch's share of the loss: each term's sum over its denominator's count in the whole update."""
    # Where all weights are zero there is nothing to learn, and nothing to divide by.
    return torch.stack([term.values.sum() / (counts[term.per] or 1.0) for term in terms]).sum()


def add_metrics(sums: dict[str, Tensor], metrics: dict[str, Metric]) -> None:
    """Add a micro-batch's metrics to the moments [count, sum, sum of squares] of each, on their device."""
    for name, (values, weight) in metrics.items():
        v = values.detach().double()
        w = torch.ones_like(v) if weight is None else weight.double()
        moments = torch.stack([w.sum(), (w * v).sum(), (w * v * v).sum()])
        sums[name] = sums[name] + moments if name in sums else moments
