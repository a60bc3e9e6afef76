"""Prepare, accumulate, clip, step: what makes an update of an objective, in micro-batches, over all processes.

An objective returns unreduced terms, each naming its denominator; the engine divides by that denominator's count over
the whole update, all micro-batches and processes together, so that neither changes loss or gradient. What runs out of
memory, or overflows in fp16, is repeated with smaller micro-batches, or a smaller scale: no update is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prefiere.models.measure import Budget, Found, autocast, measure
from prefiere.models.shard.reached import ReachedGradients
from prefiere.models.shard.spread import full, own, sharded
from prefiere.models.trunk import Trunk
from prefiere.processes.gradients import GradientSums
from prefiere.stats import Moments
from prefiere.tokens.groups import GroupStore
from prefiere.tokens.pack import PackedBatch, pack
from prefiere.tokens.schedule import split
from prefiere.train.objective import Objective, Over, add_metrics, sum_terms
from prefiere.world import World

Out = TypeVar("Out")
Name = TypeVar("Name", bound=Hashable)


class TrainingError(ValueError):
    """Training cannot go on; the message names the cause and the remedy."""


@dataclass
class Update:
    """What one update did: its loss, merged metrics, gradient norm before clipping, tokens computed, micro-batches, and
    what its objectives keep for each group (`Objective.logged`), before it: values [n] of these groups [n]."""

    loss: float
    metrics: dict[str, Moments]
    grad_norm: float
    tokens: int
    microbatches: int
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    each: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Measured:
    """An evaluation: per-group values (and weights) of each metric, and which groups they belong to."""

    index: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)


class Engine:
    """Runs objectives over stores of groups and steps the optimizer.

    ``budget`` is the number of tokens in a micro-batch; with ``adapt`` one process alone halves it when memory runs
    out. ``compute`` is the autocast dtype, or None for plain fp32.
    """

    def __init__(
        self,
        trunk: Trunk,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        *,
        world: World,
        compute: torch.dtype | None,
        max_grad_norm: float | None,
        budget: int,
        adapt: bool,
        notice: Callable[[str], None] = lambda text: None,
    ):
        self.trunk, self.optimizer, self.scheduler = trunk, optimizer, scheduler
        self.world, self.compute = world, compute
        self.max_grad_norm, self.adapt = max_grad_norm, adapt
        self.budget = Budget(budget, adapt and world.size == 1, notice)
        self.parameters = [p for p in trunk.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(trunk.device.type, enabled=compute == torch.float16)
        self.backoffs = 0
        self._sums: GradientSums | ReachedGradients | None = None
        if world.size > 1:  # the gradients of a sharded trunk are summed by itself, as its backward goes
            self._sums = ReachedGradients(trunk) if sharded(trunk) else GradientSums(self.parameters)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that every forward of the run is computed in."""
        return autocast(self.trunk.device, self.compute, cached=not sharded(self.trunk))

    def forward(self, objective: Objective, batch: PackedBatch) -> Any:
        """What an objective needs of the trunk, in the run's precision."""
        with self.autocast():
            return objective.forward(self.trunk, batch)

    # -- training -------------------------------------------------------------------------------------------------

    def update(self, store: GroupStore, members: np.ndarray, *objectives: Objective) -> Update:
        """One optimizer step on these groups, whatever the number of micro-batches and processes.

        Several objectives (policy and critic) add up; each runs forward and backward in turn, so that memory holds
        one at a time. Raises TrainingError when the loss or gradient is not finite, OutOfMemory when a single
        group does not fit into memory.
        """
        while True:
            longest = int(store.lengths[members].max())
            update = self.budget.fitting(lambda: self._accumulate(store, members, objectives), longest, self._forget)
            if self._finite(update.loss + update.grad_norm, store, members, objectives):
                break
        if self.max_grad_norm is not None:
            gradients = [own(p.grad) for p in self.parameters if p.grad is not None]
            norm = torch.tensor(update.grad_norm, device=gradients[0].device if gradients else None)
            torch._foreach_mul_(gradients, torch.clamp(self.max_grad_norm / (norm + 1e-6), max=1.0))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return update

    def _accumulate(self, store: GroupStore, members: np.ndarray, objectives: Sequence[Objective]) -> Update:
        self._forget()
        for objective in objectives:
            objective.prepare(members, self._over(objective))
        counts = store.counts(members)
        mine = self._mine(members, store.lengths, self.budget.tokens)
        sums: dict[str, Tensor] = {}
        groups, kept = list[int](), dict[str, list[Tensor]]()
        tokens = 0
        total = torch.zeros((), dtype=torch.float64, device=self.trunk.device)
        for n, indices in enumerate(mine, 1):
            # A filler gives every process gradients of the same parameters: any group, at weight zero.
            batch = self.pack(store, indices or members[:1])
            counted = bool(indices) and self.world.team.speaks
            for objective in objectives:
                result = objective(self.forward(objective, batch), batch)
                loss = sum_terms(result.terms, counts)
                with self._sending(n == len(mine) and objective is objectives[-1]):
                    self.scaler.scale(loss * float(bool(indices))).backward()
                if counted:
                    total += loss.detach()
                    add_metrics(sums, result.metrics)
                    for name in objective.logged:
                        kept.setdefault(name, []).append(result.metrics[name].values_G.detach().double())
            if counted:
                groups += indices
                tokens += int(batch.tokens_T.shape[0])
        if self._sums is not None:
            self._sums.finish()
        self.scaler.unscale_(self.optimizer)
        norm = full(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])).to(
            total.device
        )
        # Everything that the host wants to know of an update, read at once: nothing before this waits for the device.
        single = [part for parts in kept.values() for part in parts]
        found = torch.cat([torch.stack([self.world.sum(total), norm.double()]), *sums.values(), *single]).tolist()
        moments = {name: Moments(*found[2 + 3 * i : 5 + 3 * i]) for i, name in enumerate(sums)}
        singles = np.asarray(found[2 + 3 * len(sums) :]).reshape(len(kept), len(groups) if kept else 0)
        done = Update(found[0], self._merge(moments), found[1], self._total(tokens), sum(bool(i) for i in mine))
        if any(o.logged for o in objectives):
            done.groups, done.each = self._together(groups, dict(zip(kept, singles, strict=True)))
        return done

    def _forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _sending(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are summed over processes as the last backward of an update goes, and it needs to know which."""
        return nullcontext() if self._sums is None else self._sums.during_backward(last=last)

    def pack(self, store: GroupStore, indices: Sequence[int] | np.ndarray) -> PackedBatch:
        """These groups as one batch, on the device."""
        return pack([store[int(i)] for i in indices], [int(i) for i in indices]).to(self.trunk.device)

    def _finite(self, value: float, store: GroupStore, members: np.ndarray, objectives: Sequence[Objective]) -> bool:
        """True to go on; False to repeat the update under a smaller fp16 scale."""
        if np.isfinite(value):
            return True
        if self.scaler.is_enabled() and self.scaler.get_scale() / 2 >= 1:
            self.backoffs += 1
            self.scaler = torch.amp.GradScaler(self.trunk.device.type, init_scale=self.scaler.get_scale() / 2)
            return False
        where = self._culprit(store, members, objectives)
        extra = "; the fp16 loss scale is below 1: use bfloat16 or float32" if self.scaler.is_enabled() else ""
        raise TrainingError(
            f"the loss or its gradient is not finite{extra}. It comes from {where}. "
            "Look at these examples; else lower learning_rate, or set dtype=float32"
        )

    def _culprit(self, store: GroupStore, members: np.ndarray, objectives: Sequence[Objective]) -> str:
        """The examples whose own loss or gradient is not finite."""
        bad = []
        for i in members:
            self.optimizer.zero_grad(set_to_none=True)
            batch = self.pack(store, [i])
            counts = store.counts(np.asarray([i]))
            losses = [sum_terms(o(self.forward(o, batch), batch).terms, counts) for o in objectives]
            torch.stack(losses).sum().backward()
            gradients = [own(p.grad) for p in self.parameters if p.grad is not None]
            odd = [not bool(torch.isfinite(t).all()) for t in (*losses, *gradients)]
            if self._total(any(odd)):  # of a sharded trunk, each process sees a part
                bad.append(store[int(i)].source or f"example {i}")
        self.optimizer.zero_grad(set_to_none=True)
        names = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        return names or f"the sum over {', '.join(store[int(i)].source or str(i) for i in members[:5])}, ..."

    # -- measuring ------------------------------------------------------------------------------------------------

    def measure(
        self,
        store: GroupStore,
        objective: Objective,
        members: np.ndarray | None = None,
        progress: Callable[[int], None] = lambda n: None,
    ) -> Measured:
        """Every metric of an objective for each group (default: all), without gradients, in the order given."""
        members = np.arange(len(store)) if members is None else members
        objective.prepare(members, self._over(objective))

        def columns(out: Any, batch: PackedBatch) -> dict[tuple[str, bool], Tensor]:
            """Values by (name, False), weights by (name, True)."""
            found = objective(out, batch).metrics
            weights = {(n, True): m.weight_G for n, m in found.items() if m.weight_G is not None}
            return {(n, False): m.values_G for n, m in found.items()} | weights

        parts = list[Found[tuple[str, bool]]]()
        for chunk in np.array_split(members, max(1, len(members) // 1024)):
            parts += self.each(store, chunk, partial(objective.forward, self.trunk), columns, progress)
        index = np.concatenate([np.asarray(part.groups) for part in parts])
        place = {int(i): at for at, i in enumerate(index)}
        order = np.asarray([place[int(i)] for i in members])
        whole = {key: np.concatenate([part.arrays[key] for part in parts])[order] for key in parts[0].arrays}
        values = {name: x for (name, is_weight), x in whole.items() if not is_weight}
        return Measured(index[order], values, {name: x for (name, is_weight), x in whole.items() if is_weight})

    def each(
        self,
        store: GroupStore,
        members: np.ndarray,
        forward: Callable[[PackedBatch], Out],
        work: Callable[[Out, PackedBatch], Mapping[Name, Tensor]],
        progress: Callable[[int], None] = lambda n: None,
    ) -> list[Found[Name]]:
        """What `measure.measure` finds in the micro-batches of these groups, cut as an update cuts them, of all
        processes."""
        found = measure(
            self.trunk, store, forward, work,
            budget=self.budget, compute=self.compute, members=members, cut=self._mine, progress=progress,
        )  # fmt: skip
        return self.world.gather(found if self.world.team.speaks else [])

    def _mine(self, members: np.ndarray, lengths: np.ndarray, budget: int) -> Sequence[tuple[int, ...]]:
        """The micro-batches of an update that this process's team computes."""
        team = self.world.team
        return split(members, lengths, budget=budget, world_size=team.count).ranks[team.number]

    def _over(self, objective: Objective) -> Over:
        def over(
            store: GroupStore, members: np.ndarray, work: Callable[[Any, PackedBatch], Mapping[Name, Tensor]]
        ) -> list[Found[Name]]:
            return self.each(store, members, partial(objective.forward, self.trunk), work)

        return over

    # -- over processes -------------------------------------------------------------------------------------------

    def _merge(self, mine: dict[str, Moments]) -> dict[str, Moments]:
        merged: dict[str, Moments] = {}
        for part in self.world.gather([mine]):
            for n, m in part.items():
                merged[n] = merged[n] + m if n in merged else m
        return merged

    def _together(self, groups: list[int], each: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The groups of all processes, and what is kept of each."""
        parts = [part for part in self.world.gather([(groups, each)]) if part[0]]
        names = parts[0][1] if parts else {}
        indices = np.concatenate([np.asarray(g, np.int64) for g, _ in parts]) if parts else np.zeros(0, np.int64)
        return indices, {name: np.concatenate([values[name] for _, values in parts]) for name in names}

    def _total(self, n: int) -> int:
        return sum(self.world.gather([n]))
