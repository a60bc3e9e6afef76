"""How far training has moved the weights: what tells a model that learnt nothing from one that never moved."""

from __future__ import annotations

import torch
from torch import Tensor

from prefiere.models.shard.spread import full
from prefiere.models.trunk import POLICY, Trunk, role_of

SOME_WEIGHTS = 1 << 20
"""Weights that are looked at, at most: of more, a part that is spread evenly."""


class WeightsMoved:
    """Remembers a part of the trained weights of the policy as they are now, to compare with what they become.

    Of a sharded trunk, all processes ask together."""

    def __init__(self, trunk: Trunk):
        named = [(n, p) for n, p in trunk.named_parameters() if p.requires_grad and role_of(n) in (None, POLICY)]
        self._parameters = [p for _, p in named]
        total = sum(p.numel() for p in self._parameters)
        self._every = max(1, -(-total // SOME_WEIGHTS))
        self._before = self._some()

    @torch.no_grad()
    def _some(self) -> Tensor:
        parts = [full(p.detach()).reshape(-1)[:: self._every].float() for p in self._parameters]
        return torch.cat(parts).clone() if parts else torch.zeros(0)

    def share(self) -> float:
        """norm(theta - theta0) / norm(theta0), of an adapter over its own weights; nan where there are none."""
        if not len(self._before):
            return float("nan")
        change, before = torch.linalg.vector_norm(self._some() - self._before), torch.linalg.vector_norm(self._before)
        return float(change / before) if float(before) else float("nan")
