"""Methods that learn from data as it is: each step is one update on a batch of it, held-out data is measured alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefiere.asked.language import in_words
from prefiere.evaluate import singles
from prefiere.evaluate.rows import flat
from prefiere.evaluate.start import at_start
from prefiere.kernels.logprobs import TargetLogprobs
from prefiere.models.configuration import drops_out
from prefiere.models.reference import Reference, cached_logps, sequence_logps
from prefiere.models.shard.spread import sharded
from prefiere.models.trunk import Trunk
from prefiere.plan.examples import ExampleData
from prefiere.run import Stop
from prefiere.tokens.groups import GroupStore
from prefiere.tokens.pack import PackedBatch
from prefiere.tokens.schedule import cut_for, members
from prefiere.train.engine import Measured, Update
from prefiere.train.objective import Objective, Over, Result
from prefiere.train.setup import Session

UNKNOWN = math.inf
"""Noise before the first update, in which every margin is a tie. In truth it is 0 then: what the update measures of its
pairs is the rounding of the path, and margins within it are ties from then on, so that accuracy stays at chance until
something is learnt."""


def _nothing(held: Measured | None) -> None:
    """Most methods' models are finished when they are trained."""


@dataclass
class Unmoved(Objective):
    """A goal before the first update, where the policy is the reference still: its log-probs, which are known, stand in
    for a forward pass."""

    goal: Objective

    def prepare(self, members: np.ndarray, over: Over) -> None:
        """What the goal finds where nothing has moved."""
        self.goal.prepare_unmoved()

    def forward(self, trunk: Trunk, batch: PackedBatch) -> TargetLogprobs:
        """All of a completion's log-prob at its first target, so that their sum is the reference's, to the bit."""
        assert self.goal.reference is not None
        logp_N = torch.zeros(batch.owner_N.shape[0], device=batch.owner_N.device)
        logp_C = rows_of(self.goal.reference, batch.index_G, logp_N)
        first_C = batch.scored_C.cumsum(0) - batch.scored_C
        some_C = batch.scored_C > 0
        logp_N[first_C[some_C]] = logp_C[some_C]
        return TargetLogprobs(logp_N, torch.zeros_like(logp_N), None)

    def __call__(self, out: TargetLogprobs, batch: PackedBatch) -> Result:
        """As the goal's."""
        return self.goal(out, batch)


@dataclass
class Offline:
    """An objective on the training data, the same on the held-out data, the reference for sampled answers.

    finishing: what completes the model before it is written, given what the held-out data show of it. validated: the
    last validation, and the updates before it.
    """

    session: Session
    data: ExampleData
    train: Objective
    held: Objective | None
    reference: Reference | None = None
    guarded: bool = True
    shown: str = "loss"
    noise: float = 0.0
    finishing: Callable[[Measured | None], None] = _nothing
    rows: list[dict[str, Any]] = field(default_factory=list)
    validated: tuple[int, Measured] | None = None

    @property
    def examples(self) -> int:
        """How many it trains on."""
        return len(self.data.train)

    def _members(self, step: int) -> np.ndarray:
        settings = self.session.settings
        return members(self.examples, settings.batch_size, seed=settings.seed, step=step)

    def step(self, step: int) -> Update:
        """One update."""
        update = self.session.engine.update(self.data.train, self._members(step), self.train)
        if self.noise == UNKNOWN:
            self._set_noise(_largest(update.each))
        visits = self.session.total_steps * self.session.settings.batch_size
        kept = singles.some(update.groups, visits)
        self._note(self.data.train, self.train, update.groups[kept], _at(update.each, kept), step + 1, "train")
        return update

    def _note(
        self, store: GroupStore, goal: Objective, index: np.ndarray, each: dict[str, np.ndarray], step: int, split: str
    ) -> None:
        if goal.logged and len(index):
            self.rows += singles.rows(store, index, goal.singles(index, each), step=step, split=split)

    def singles(self) -> list[dict[str, Any]]:
        """What the pairs of the updates and validations since showed."""
        rows, self.rows = self.rows, []
        return rows

    def begin(self) -> dict[str, Any]:
        """The first update's examples and the held-out ones, before any update; of a loss with a reference, both are
        known."""
        engine, data, first = self.session.engine, self.data, self._members(0)
        if self.train.reference is not None and data.train.k == 2:
            self._set_noise(UNKNOWN)
            if drops_out(self.session.trunk):  # what an adapter drops in training is no rounding
                self._set_noise(_largest(engine.measure(data.train, self.train, first).values))
        measured = engine.measure(data.train, _before(self.train), first)
        row = self._start() | flat(measured.values, data.train.prompt_keys[first], weights=measured.weights)
        if data.eval is not None and self.held is not None:
            held = self._measure_held(data.eval, _before(self.held))
            row |= flat(held.values, data.eval.prompt_keys, prefix="eval_", weights=held.weights)
        return row

    def _start(self) -> dict[str, Any]:
        """What model and examples are to each other before any update; nothing for a model that writes no text."""
        if self.session.plan.scores:
            return {}
        engine, settings = self.session.engine, self.session.settings
        return at_start(
            self.session.trunk,
            self.data.train,
            known=self.train.reference,
            examples=min(self.examples, self.session.total_steps * settings.batch_size),
            max_length=self.session.plan.max_length,
            budget=engine.budget,
            autocast=engine.compute,
        )

    def validate(self) -> dict[str, Any]:
        """The held-out examples."""
        held = self.data.eval
        if held is None or self.held is None:
            return {}
        measured = self._measure_held(held, self.held)
        self.validated = self.session.engine.scheduler.last_epoch, measured
        kept = singles.some(measured.index, len(held), singles.MOST_HELD)
        each = _at({name: measured.values[name] for name in self.held.logged}, kept)
        self._note(held, self.held, measured.index[kept], each, self.session.engine.scheduler.last_epoch, "eval")
        return flat(measured.values, held.prompt_keys, prefix="eval_", weights=measured.weights)

    def _measure_held(self, held: GroupStore, goal: Objective) -> Measured:
        with self.session.display.stage(in_words("progress.validating"), len(held)) as advance:
            return self.session.engine.measure(held, goal, progress=advance)

    def complete(self, *, put_back: bool) -> None:
        """What the method does to a trained model. The held-out data is not measured again where the last validation
        was of these weights."""
        held, last = self.data.eval, self.validated
        if self.finishing is _nothing or held is None or self.held is None:
            self.finishing(None)
        elif last is not None and last[0] == self.session.engine.scheduler.last_epoch and not put_back:
            self.finishing(last[1])
        else:
            self.finishing(self._measure_held(held, self.held))

    def stop(self, row: dict[str, Any]) -> Stop | None:
        """Never."""
        return None

    def state(self) -> dict[str, Any]:
        """The path's noise."""
        return {"noise": self.noise}

    def restore(self, saved: dict[str, Any]) -> None:
        """Margins within the noise are ties again."""
        self._set_noise(saved["noise"])

    def _set_noise(self, noise: float) -> None:
        self.noise = noise
        for objective in (self.train, self.held):
            if objective is not None:
                objective.noise = noise


def _largest(each: Mapping[str, np.ndarray]) -> float:
    return float(np.abs(each["rewards/margins"]).max())


def _before(goal: Objective) -> Objective:
    """A goal as it stands before the first update: known where the loss compares with the reference."""
    return goal if goal.reference is None else Unmoved(goal)


def _at(each: dict[str, np.ndarray], kept: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[kept] for name, values in each.items()}


def reference_logps(session: Session, store: Any) -> np.ndarray:
    """The reference's log-prob of every completion of a store [n, k]: from the first process's cache where it is there,
    else each process computes its share."""
    engine, world = session.engine, session.world

    def settle(kept: np.ndarray | None) -> np.ndarray:
        found = world.broadcast(kept)
        if found is not None:
            return found
        with session.display.stage(in_words("progress.reference"), len(store)) as advance:
            share = sequence_logps(
                session.trunk,
                store,
                budget=engine.budget,
                autocast=engine.compute,
                cut=cut_for(world.team.number, world.team.count),
                progress=advance,
            )
        world.barrier()  # one may be slower than another
        return world.sum_of_teams(share)

    # The weights of a sharded trunk are hashed by all processes together.
    key = session.reference_key if world.main or sharded(session.trunk) else {}
    if not world.main:
        return settle(None)
    return cached_logps({**key, "tokens": store.fingerprint(), "dtype": str(engine.compute)}, settle)


def rows_of(table: np.ndarray, index_G: Tensor, like: Tensor) -> Tensor:
    """The rows [G, k] of a table of per-completion numbers that belong to a batch, flat [C]."""
    return torch.from_numpy(table[index_G.cpu().numpy()]).to(like).flatten()
