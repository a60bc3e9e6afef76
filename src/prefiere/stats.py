"""What a mean is worth: mergeable moments, and intervals that know that answers to one prompt resemble each other.

Every metric is a :class:`Moments` until somebody looks at it, so that five pairs evaluated in batches of four give the
mean over five pairs, whichever process saw which. No torch here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, ndtr, ndtri, stdtrit


def float_of(value: Any) -> float | None:
    """A number that a float holds; None for anything else, since files of a run may come from a stranger."""
    most = sys.float_info.max
    known = isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most
    return float(value) if known else None


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, sum and sum of squares of some numbers: they merge by addition, so a mean of means never arises."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """The moments of numbers of any shape."""
        x = np.asarray(values, dtype=np.float64).ravel()
        return cls(float(x.size), float(x.sum()), float(x @ x))

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of numbers together."""
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """nan without a value."""
        return self.total / self.count if self.count else math.nan

    @property
    def variance(self) -> float:
        """Unbiased (n - 1); nan below two values. What is left of a constant's rounding error is 0, never negative."""
        if self.count < 2:
            return math.nan
        around_mean = self.squares - self.total * self.mean
        if around_mean <= 2 * np.finfo(np.float64).eps * self.count * self.squares:
            return 0.0
        return around_mean / (self.count - 1)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's t interval of the mean, for independent values; (nan, nan) below two values."""
        if self.count < 2:
            return math.nan, math.nan
        half = _t(level, self.count - 1) * math.sqrt(self.variance / self.count)
        return self.mean - half, self.mean + half


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% interval, and how many values in how many clusters it rests on."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int


def clustered_mean(
    values: ArrayLike,
    clusters: Sequence[Hashable] | np.ndarray,
    *,
    weights: ArrayLike | None = None,
    share: bool | None = None,
    level: float = 0.95,
) -> Estimate:
    """The mean m of ``values`` with an interval that lets values of one cluster (a prompt) resemble each other.

    The variance is the cluster-robust one with its small-sample factor, Var = G/(G-1) sum_g (sum_{i in g} w_i (x_i -
    m))^2 / (sum_i w_i)^2 (Liang and Zeger 1986), the quantile Student's with G - 1 degrees of freedom, G the number
    of clusters. ``weights`` (tokens of each answer, say) are 1 unless given; values of weight 0 do not count. Below
    two clusters the bounds are nan: one prompt says nothing about others.

    A ``share`` (an accuracy with ties, say) gets Wilson's interval at the effective sample size m(1-m)/Var instead, at
    most that of independent values: the normal interval leaves [0, 1] and has width zero when all answers are right.
    Where all values are equal nothing tells how alike a cluster is, so it is taken to be entirely so. Unless told, a
    share is what takes no values but 0, 1/2 and 1, and not 0 alone: that is also a reward before training.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if not len(x) == len(w) == len(clusters):
        raise ValueError(f"{len(x)} values, {len(clusters)} clusters, {len(w)} weights: each value needs its own")
    counted = w > 0
    numbers: dict[Hashable, int] = {}
    group = np.array([numbers.setdefault(c, len(numbers)) for c, k in zip(clusters, counted, strict=True) if k], int)
    x, w = x[counted], w[counted]
    n, g, total = len(x), len(numbers), float(w.sum())
    mean = float(w @ x) / total if n else math.nan
    if g < 2:
        return Estimate(mean, math.nan, math.nan, n, g)
    off = np.bincount(group, weights=w * (x - mean))
    variance = g / (g - 1) * float(off @ off) / total**2
    t = _t(level, g - 1)
    if share is None:
        share = bool(np.isin(x, (0.0, 0.5, 1.0)).all() and x.any())
    if not share:
        half = t * math.sqrt(variance)
        return Estimate(mean, mean - half, mean + half, n, g)
    if np.ptp(x) == 0:
        of_cluster = np.bincount(group, weights=w)
        effective = total**2 / float(of_cluster @ of_cluster)
    else:
        effective = total**2 / float(w @ w)
        if variance:
            effective = min(effective, mean * (1 - mean) / variance)
    return Estimate(mean, *_score_interval(mean, effective, t), n, g)


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of independent trials (Wilson 1927); (nan, nan) without a trial."""
    if not n:
        return math.nan, math.nan
    return _score_interval(successes / n, n, float(ndtri(0.5 + level / 2)))


def clusters_won(signs: ArrayLike, clusters: Sequence[Hashable] | np.ndarray) -> tuple[int, int]:
    """In how many clusters (prompts) more values are positive than negative, and in how many fewer.

    Values of one cluster are no independent coins: for `sign_test` each cluster is one, and one that ties is none.
    """
    more: dict[Hashable, float] = {}
    for sign, cluster in zip(np.sign(np.asarray(signs, dtype=np.float64).ravel()), clusters, strict=True):
        more[cluster] = more.get(cluster, 0.0) + float(sign)
    return sum(m > 0 for m in more.values()), sum(m < 0 for m in more.values())


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of ``wins`` against ``losses`` if each were a coin flip. Ties are left out by the caller."""
    from scipy.stats import binomtest  # 1.5 s to import: only where it is asked for

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def _score_interval(p: float, n: float, z: float) -> tuple[float, float]:
    """All p' with |p - p'| <= z sqrt(p'(1-p')/n): where 0 and 1 are seen, the interval still has a width."""
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def _t(level: float, dof: float) -> float:
    """Two-sided Student quantile."""
    return float(stdtrit(dof, 0.5 + level / 2))


# -- two clouds -------------------------------------------------------------------------------------------------------
# Evidence for labels is signed: above 0 where a witness (a model's margin, a sum over words) agrees with the label.
# What is hard to tell lies near 0; a label that is swapped is contradicted as firmly as others are confirmed. All of it
# is ratios, so that the unit of the evidence does not matter.

BETWEEN, LEAST = 0.25, 0.088
"""Of a single bell of margins with one in twenty or more below 0, the share ``LEAST`` or more lies within ``BETWEEN``
times the median absolute margin of 0 (a normal one whose 5% quantile is 0 has 8.9%, one around 0 13%)."""
HESITANT = ((0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45), (0.12, 0.17, 0.22, 0.28, 0.33, 0.36, 0.39, 0.44, 0.47))
"""By the share of margins below 0: how often one of them is the larger, in size, of one below and one above. For normal
margins of a spread that differs from pair to pair (lognormal, 0.5). An error of a single bell is a hesitant one; a
swapped label is contradicted as firmly as others are confirmed: one half."""
UNLIKELY = 0.003
"""Chance of both under a single bell, below which margins count as two clouds."""
FEWEST_MARGINS = 30
"""Margins, below which they count as one."""


def between(margins: np.ndarray) -> int:
    """How many of these lie near 0, between the two clouds that swapped labels make."""
    size = np.abs(margins)
    return int((size < BETWEEN * np.median(size)).sum()) if len(size) else 0


def chance_of_one(margins: np.ndarray) -> float:
    """How likely so few margins near 0, and errors as firm as these, are of a single bell: two tests, combined as
    Fisher (1932) does; 1 below `FEWEST_MARGINS`, and where fewer than 5 or more than 45% are below 0."""
    if len(margins) < FEWEST_MARGINS or not 0.05 <= float((margins < 0).mean()) <= 0.45:
        return 1.0
    size, wrong = np.abs(margins), margins < 0
    n, m, right = int(wrong.sum()), int((~wrong).sum()), np.sort(size[~wrong])
    below = np.searchsorted(right, size[wrong], "left") + np.searchsorted(right, size[wrong], "right")
    firm = float(below.mean()) / (2 * m)
    spread = np.sqrt((n + m + 1) / (12 * n * m))  # of this share: Mann and Whitney (1947)
    p_firm = float(ndtr(-(firm - np.interp(n / len(margins), *HESITANT)) / spread))
    both = max(float(bdtr(between(margins), len(margins), LEAST)) * p_firm, 1e-300)
    return both * (1 - float(np.log(both)))


def firmly_against(margins: np.ndarray) -> np.ndarray:
    """Where the evidence is against the label, and no hesitant one: bool, as ``margins``."""
    return margins < -BETWEEN * float(np.median(np.abs(margins)))
