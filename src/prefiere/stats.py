"""What a mean is worth: mergeable moments, and intervals that know that answers to one prompt resemble each other.

Every metric is a :class:`Moments` until somebody looks at it, so that five pairs evaluated in batches of four give the
mean over five pairs, whichever process saw which. No torch here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


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
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of numbers together."""
        return self + other

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
        if around_mean <= 4 * np.finfo(np.float64).eps * self.count * self.squares:
            return 0.0
        return around_mean / (self.count - 1)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's t interval of the mean, for independent values; (nan, nan) below two values."""
        if self.count < 2:
            return math.nan, math.nan
        half = _t(level, self.count - 1) * math.sqrt(self.variance / self.count)
        return self.mean - half, self.mean + half


def _t(level: float, dof: float) -> float:
    """Two-sided Student quantile."""
    return float(stdtrit(dof, 0.5 + level / 2))
