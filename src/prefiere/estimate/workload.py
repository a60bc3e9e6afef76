"""What is known of a run before it starts: its plan, and the lengths of its data. No weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefiere.console import Display
from prefiere.plan.device import Device
from prefiere.plan.examples import ExampleData
from prefiere.plan.plan import Plan, resolve
from prefiere.plan.reading import Reader, updates_of
from prefiere.plan.rhythm import Costs, Rhythm, choose_rhythm, choose_watched
from prefiere.settings import PolicyGradient, Settings
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.schedule import members, split

ROWS_AT_ONCE = 64
"""Sequences that decode at once."""
STEPS = 200
"""Updates whose micro-batches are looked at for the longest."""


@dataclass(frozen=True)
class Workload:
    """A plan with the groups of its data.

    steps: updates. rhythm: how often it measures; work: what it computes. prompts: lengths of those that are answered
    at once, in tokens. held_out: tokens of held-out groups. device: what it was planned for.
    """

    plan: Plan
    device: Device
    store: GroupStore | list[PromptGroup]
    steps: int
    rhythm: Rhythm
    work: Costs
    prompts: tuple[int, ...] = ()
    held_out: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each group."""
        return np.asarray([g.length for g in self.store]) if isinstance(self.store, list) else self.store.lengths

    @property
    def teams(self) -> int:
        """Processes that compute different micro-batches; those that share one are a team."""
        return self.device.processes // self.plan.settings.sequence_parallel_size

    @property
    def rows(self) -> int:
        """Answers that are sampled at once; 0 for a run that samples none here."""
        s = self.plan.settings
        if self.plan.servers or self.plan.scores or (s.sample_steps == 0 and not isinstance(s, PolicyGradient)):
            return 0
        each = s.num_generations if isinstance(s, PolicyGradient) else s.samples_per_prompt
        return min(ROWS_AT_ONCE, len(self.prompts) * each)


def workload(settings: Settings, device: Device, display: Display) -> Workload:
    """Plan a run for a device and read its data. Raises ValueError as the run would, but for too little memory."""
    plan = resolve(settings, device, must_fit=False)
    data = Reader.of(plan).read(plan, display)
    steps = updates_of(settings, len(data.train))
    data, _ = choose_watched(plan, data)
    rhythm, parts, _ = choose_rhythm(plan, data)
    if isinstance(data, ExampleData):
        watched = tuple(sorted(len(p) for p in data.watched.ids))
        held_out = int(data.eval.lengths.sum()) if data.eval is not None else 0
        return Workload(plan, device, data.train, steps, rhythm, parts, watched, held_out)
    assert isinstance(settings, PolicyGradient)
    store = [_answered(p, settings) for p in data.train.ids]
    first = members(len(store), settings.batch_size, seed=settings.seed, step=0)
    asked = tuple(sorted(len(data.train.ids[i]) for i in first))
    return Workload(plan, device, store, steps, rhythm, parts, asked)


def _answered(prompt: np.ndarray, settings: PolicyGradient) -> PromptGroup:
    """A prompt with answers that are as long as they may become."""
    n, k = settings.max_new_tokens, settings.num_generations
    answer = np.zeros(n, np.int32)
    return PromptGroup(prompt, (answer,) * k, (np.ones(n, bool),) * k)


def longest(work: Workload) -> tuple[list[PromptGroup], int, float]:
    """The heaviest micro-batch of the first updates, how many there are in its update, and the tokens of an update."""
    lengths, s = work.lengths, work.plan.settings
    best: tuple[int, tuple[int, ...], int] = (0, (0,), 1)
    totals = []
    for step in range(min(work.steps, STEPS)):
        chosen = members(len(lengths), s.batch_size, seed=s.seed, step=step)
        parts = split(chosen, lengths, budget=work.plan.budget, world_size=work.teams).ranks[0]
        totals.append(int(lengths[chosen].sum()))
        for part in parts:
            total = int(lengths[list(part)].sum())
            if (total, len(parts)) > (best[0], best[2]):
                best = (total, part, len(parts))
    return [work.store[i] for i in best[1]], best[2], float(np.mean(totals))
