"""Reward against KL: what each run got, and how far it moved from its start to get it.

A score alone favours whoever pushed hardest, so runs are compared at equal KL (as in Rafailov et al. 2023, figure 2).
Points are what was sampled along the run, each with the intervals of both axes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefiere.doctor.case import Case
from prefiere.doctor.series import Change, Level, Series

KL = "samples/kl"
SCORES = (("samples/score", "judge"), ("samples/reward", "reward"))
"""What can stand on the other axis, and the setting that must agree for runs to share it."""


@dataclass(frozen=True, slots=True)
class Path:
    """A run's way: KL and score at the steps where both were measured, in order [points]."""

    run: int
    kl: Series
    score: Series

    @property
    def moved(self) -> bool:
        """Whether its last KL is above zero beyond the noise."""
        low, last = float(self.kl.low[-1]), float(self.kl.values[-1])
        return (last if math.isnan(low) else low) > 0

    def at(self, kl: float) -> Level:
        """The score where the path first reaches ``kl``, between two points by a straight line.

        Its interval is that of the two points taken together as if they erred alike (they are the same prompts, so
        nothing is gained by averaging), and, in quadrature, what the score changes over the interval of the KL.
        """
        if math.isnan(self._between(self.score.low, kl)):
            return Level(self._between(self.score.values, kl))
        here = self._between(self.score.values, kl)
        below, above = here - self._between(self.score.low, kl), self._between(self.score.high, kl) - here
        near = [0.0]
        for bound in (self.kl.low, self.kl.high):
            off = self._between(bound, kl) - kl
            if not math.isnan(off):
                near.append(self._between(self.score.values, kl + off) - here)
        n = int(self.score.n.max(initial=0))
        return Level(here, here - math.hypot(below, min(near)), here + math.hypot(above, max(near)), n)

    def _between(self, values: np.ndarray, kl: float) -> float:
        reached = np.flatnonzero(self.kl.values >= kl)
        i = int(reached[0]) if len(reached) else len(values) - 1
        if i == 0 or not len(reached):
            return float(values[i])
        left, right = self.kl.values[i - 1], self.kl.values[i]
        share = float((kl - left) / (right - left))
        return float(share * values[i] + (1 - share) * values[i - 1])


@dataclass(frozen=True, slots=True)
class Frontier:
    """What is drawn: which score, the paths, which runs are left out and why (a key of the words), and whether the
    prompts agree."""

    key: str
    paths: tuple[Path, ...]
    left_out: tuple[tuple[int, str], ...]
    same_prompts: bool

    @property
    def moved(self) -> tuple[Path, ...]:
        """The runs that can be compared at equal KL."""
        return tuple(p for p in self.paths if p.moved)

    @property
    def equal_kl(self) -> float | None:
        """The smallest final KL among the runs that moved; None where there are not two of them."""
        return min(float(p.kl.values[-1]) for p in self.moved) if len(self.moved) > 1 else None

    @property
    def ahead(self) -> int | None:
        """The run whose score at equal KL is above all others beyond the noise."""
        kl = self.equal_kl
        if kl is None:
            return None
        ranked = sorted(self.moved, key=lambda p: -p.at(kl).mean)
        best = ranked[0].at(kl)
        return ranked[0].run if all(Change(p.at(kl), best).rises() for p in ranked[1:]) else None


def frontier(cases: Sequence[Case]) -> Frontier | None:
    """The runs with KL and a score that they share; None where there is nothing to draw."""
    if len(cases) == 1 and cases[0].family != "policy":
        return None
    choices = []
    for key, setting in SCORES:
        found = {i: p for i, case in enumerate(cases) if (p := _path(i, case, key)) is not None}
        by = Counter(json.dumps(cases[i].recipe.get(setting)) for i in found)
        if by:
            shared = by.most_common(1)[0][0]
            choices.append(
                (key, {i: p for i, p in found.items() if json.dumps(cases[i].recipe.get(setting)) == shared})
            )
    if not choices:
        return None
    key, paths = max(choices, key=lambda choice: len(choice[1]))  # of equally many, the judge's: it stands first
    left_out = tuple((i, _why(cases[i], key)) for i in range(len(cases)) if i not in paths and _why(cases[i], key))
    asked = {prompts for i in paths if (prompts := _prompts(cases[i]))}
    return Frontier(key, tuple(paths.values()), left_out, len(asked) < 2)


def _path(run: int, case: Case, key: str) -> Path | None:
    rows = [r for r in case.rows if len(Series.of([r], key)) and len(Series.of([r], KL))]
    return Path(run, Series.of(rows, KL), Series.of(rows, key)) if rows else None


def _why(case: Case, key: str) -> str:
    if case.family == "reward":
        return ""  # a reward model writes nothing: nobody misses it here
    if not len(case.series(KL)):
        return "left_out.kl"
    if not len(case.series(key)):
        return "left_out.no_judge" if key == SCORES[0][0] else "left_out.no_reward"
    return "left_out.other_judge" if key == SCORES[0][0] else "left_out.other_reward"


def _prompts(case: Case) -> frozenset[str]:
    """What was asked at the first sampling."""
    rows = case.run.samples_at_ends()
    first = min((r["step"] for r in rows if isinstance(r.get("step"), int)), default=None)
    return frozenset(json.dumps(r.get("prompt")) for r in rows if r.get("step") == first)
