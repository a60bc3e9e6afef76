"""What to ask next, and when asking more is known to bring little. Neither promises what it did not measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prefiere.feedback.science.ranking import logistic

FIRST_RANDOM = 50
"""Votes before any score is computed."""
FEWEST_VOTES = 400
"""Votes in random order before anybody is told that they can stop."""


def priorities(
    x: np.ndarray, asked: Sequence[int], right: Sequence[float], count: int, ridge: float = 1.0
) -> list[int]:
    """The ``count`` pairs to ask next, best first: greedy D-optimal design for a logistic model of the preference.

    x [n, d]: difference of each pair's features (frozen mean hidden states after a PCA to 32 to 64); asked [m]: rows
    that have a vote; right [m]: 1 where the first answer won, 0.5 for a tie. Each step takes the pair with the largest
    p(1-p) x' H^-1 x, H = ridge I + sum over asked and taken pairs of p(1-p) x x', updated by rank one. No pair is given
    before FIRST_RANDOM votes.
    """
    if len(asked) < FIRST_RANDOM:
        return []
    rows = np.asarray(asked, int)
    theta, hessian = logistic(x[rows], np.asarray(right, float), ridge)
    p = 1 / (1 + np.exp(-np.clip(x @ theta, -50, 50)))
    spread = p * (1 - p)
    inverse = np.linalg.inv(hessian)
    free = np.ones(len(x), bool)
    free[rows] = False
    projected = x @ inverse
    gain = np.where(free, spread * (projected * x).sum(1), -1.0)
    taken: list[int] = []
    for _ in range(min(count, int(free.sum()))):
        best = int(gain.argmax())
        taken.append(best)
        free[best] = False
        direction = inverse @ x[best]
        scale = spread[best] / (1 + spread[best] * float(x[best] @ direction))
        inverse -= scale * np.outer(direction, direction)
        moved = x @ direction
        gain = np.where(free, gain - spread * scale * moved**2, -1.0)
    return taken


def principal(features: np.ndarray, width: int = 32) -> np.ndarray:
    """[n, D] -> [n, width]: the coordinates along the directions of largest variance, scaled to unit mean square."""
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    found = centred @ directions[:width].T
    return np.asarray(found / (math.sqrt(float((found**2).sum(1).mean())) or 1.0))


@dataclass(frozen=True)
class Stopping:
    """Whether more votes can be expected to bring less than the threshold, and the interval of what they bring."""

    said: Literal["stop", "go_on", "too_early"]
    gain: float
    low: float
    high: float
    votes: int


@dataclass(frozen=True)
class Brought:
    """What the active order brought: the accuracy gained, on votes in random order, by a learner half of whose votes
    were asked in that order over one that has as many votes in random order; with its 95% interval.

    ordered, random: how many votes of each kind there are.
    """

    gain: float
    low: float
    high: float
    ordered: int
    random: int

    @property
    def measurable(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def stopping(
    right_all: Sequence[float], right_half: Sequence[float], prompts: Sequence[object], *, threshold: float = 0.01,
    before: Stopping | None = None,
) -> Stopping:  # fmt: skip
    """Whether to stop, by an upper bound alone: a point estimate says "stop" wrongly in 28 to 65% of cases.

    right_all [n], right_half [n]: 1 where the out-of-fold prediction of a vote in random order is right, learnt from
    all such votes and from half of them. d is the difference of the two accuracies, se its error clustered by prompt;
    the next doubling is expected to gain 0.7 d, with bounds 0.7 (d +- 1.96 se). "stop" where the upper bound is below
    ``threshold`` here and at the check before, 25% of the votes earlier, with FEWEST votes at both.
    """
    difference = np.asarray(right_all, float) - np.asarray(right_half, float)
    n = len(difference)
    groups = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
    if len(groups) < 2:
        return Stopping("too_early", math.nan, math.nan, math.nan, n)
    d = float(difference.mean())
    sums = np.bincount([groups[p] for p in prompts], weights=difference - d)
    g = len(groups)
    error = math.sqrt(g / (g - 1) * float(sums @ sums)) / n
    low, high = 0.7 * (d - 1.96 * error), 0.7 * (d + 1.96 * error)
    if n < FEWEST_VOTES:
        return Stopping("too_early", 0.7 * d, low, high, n)
    below = error > 0 and high < threshold
    twice = before is not None and before.votes >= FEWEST_VOTES and before.votes <= 0.8 * n and before.high < threshold
    return Stopping("stop" if below and twice else "go_on" if low >= threshold else "too_early", 0.7 * d, low, high, n)
