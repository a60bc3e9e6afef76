"""A win rate from few votes of people and many of a judge: prediction-powered inference.

A judge alone gives a confident figure that may be far off. Corrected on the pairs that people voted on too, its
interval covers the truth as it should, and saves votes of people as far as the judge agrees with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

FEWEST_JUDGED = 20
"""Pairs that both people and the judge voted on, below which nothing is corrected."""


@dataclass(frozen=True)
class Corrected:
    """A mean with its 95% interval; ``trust`` is lambda, how much the judge is used; ``people`` the mean without it."""

    mean: float
    low: float
    high: float
    trust: float
    people: float
    people_low: float
    people_high: float
    n: int
    judged: int


def corrected(people: ArrayLike, judge_same: ArrayLike, judge_others: ArrayLike) -> Corrected:
    """PPI++ for a mean (Angelopoulos, Duchi and Zrnic 2023).

    people h [n] and judge_same f [n]: what people and the judge said of the same n pairs (1 a win, 0.5 a tie, 0 a
    loss); judge_others f [N]: what the judge said of N other pairs. theta = lambda mean_N(f) + mean_n(h - lambda f),
    lambda = cov(h, f) / ((1 + n/N) var f), in [0, 1]; var = lambda^2 var(f)/N + var(h - lambda f)/n. Raises ValueError
    below FEWEST common pairs.
    """
    h, f, rest = (np.asarray(x, float) for x in (people, judge_same, judge_others))
    n, m = len(h), len(rest)
    if n != len(f):
        raise ValueError(f"{n} votes of people and {len(f)} of the judge on the same pairs: each pair needs both.")
    if n < FEWEST_JUDGED:
        raise ValueError(
            f"{n} pairs have votes of people and of the judge: at least {FEWEST_JUDGED} are needed to correct it."
        )
    spread = float(np.var(np.concatenate([f, rest]), ddof=1))
    trust = 0.0
    if m and spread > 0:
        trust = float(np.clip(np.cov(h, f)[0, 1] / ((1 + n / m) * spread), 0.0, 1.0))
    mean = float((trust * rest.mean() if m else 0.0) + (h - trust * f).mean())
    variance = (trust**2 * spread / m if m else 0.0) + float(np.var(h - trust * f, ddof=1)) / n
    half, alone = 1.96 * variance**0.5, 1.96 * (float(np.var(h, ddof=1)) / n) ** 0.5
    own = float(h.mean())
    return Corrected(mean, mean - half, mean + half, trust, own, own - alone, own + alone, n, m)
