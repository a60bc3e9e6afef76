"""A metric over a run as numbers to reason with: where it began, where it ended, and whether the change is real.

No conclusion may hang on one noisy row: an end is the mean of several, and a change counts only beyond the
95% intervals of both of its ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.special import stdtrit

from prefiere.metrics import measured_again
from prefiere.stats import Moments


@dataclass(frozen=True, slots=True)
class Level:
    """A mean, its 95% interval (nan where nothing tells) and the number of values behind it."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def spread(self) -> float:
        """Standard deviation of the single values, as the interval of their mean tells it; nan where nothing does."""
        return (self.high - self.low) / (2 * 1.96) * math.sqrt(self.n) if self.known and self.n else math.nan

    def above(self, value: float) -> bool:
        """Whether the interval lies above ``value``."""
        return self.known and self.low > value

    def below(self, value: float) -> bool:
        """Whether the interval lies below ``value``."""
        return self.known and self.high < value


@dataclass(frozen=True, slots=True)
class Change:
    """A metric before and after."""

    before: Level
    after: Level

    @property
    def diff(self) -> float:
        return self.after.mean - self.before.mean

    @property
    def low(self) -> float:
        """Lower 95% bound of the difference (Newcombe 1998, method 10), as if both ends saw different examples.

        They rarely did: on the same examples the truth is tighter, so this errs towards saying nothing.
        """
        a, b = self.after, self.before
        sides = [side for side in (a.mean - a.low, b.high - b.mean) if not math.isnan(side)]
        return self.diff - math.hypot(*sides) if sides else math.nan

    def rises(self, least: float = 0.0) -> bool:
        """Whether it rose by more than ``least``, beyond the noise."""
        if math.isnan(self.low):  # unknown noise: only twice what would matter is believed
            return least > 0 and self.diff > 2 * least
        return self.low > least

    def falls(self, least: float = 0.0) -> bool:
        """Whether it fell by more than ``least``, beyond the noise."""
        return Change(self.after, self.before).rises(least)

    def moves(self, least: float = 0.0) -> bool:
        """Whether it rose or fell so."""
        return self.rises(least) or self.falls(least)


@dataclass(frozen=True, slots=True)
class Series:
    """One key of metrics.jsonl: ``steps``, ``values`` and, where they were logged, the bounds ``low`` and ``high``
    (else nan) and counts ``n`` (else 0), each of shape [rows].

    ``same``: every row measured the same examples (validation, sampled answers), so that rows share their luck and
    all together are no surer than one. Training rows each have examples of their own.
    """

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    same: bool = True

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], key: str) -> Self:
        """The rows that have a finite value at ``key``, by step."""
        found = sorted((r for r in rows if _number(r, key) is not None), key=lambda r: r.get("step", 0))

        def column(name: str, missing: float) -> np.ndarray:
            values = [_number(r, name) for r in found]
            return np.array([missing if v is None else v for v in values], dtype=np.float64)

        return cls(
            column("step", 0.0),
            column(key, math.nan),
            column(f"{key}_low", math.nan),
            column(f"{key}_high", math.nan),
            column(f"{key}_n", 0.0),
            measured_again(key),
        )

    def __len__(self) -> int:
        return len(self.steps)

    def level(self, rows: slice) -> Level:
        """The mean over some rows."""
        values, low, high = self.values[rows], self.low[rows], self.high[rows]
        n = int(np.max(self.n[rows], initial=0))
        mean, known = float(values.mean()), not np.isnan(low).any()
        if self.same:
            below, above = (float((values - low).mean()), float((high - values).mean())) if known else (math.nan,) * 2
            return Level(mean, mean - below, mean + above, n)
        if len(values) >= 3:
            return _trimmed(values)
        half = float(np.linalg.norm((high - low) / 2)) / len(values) if known else math.nan
        return Level(mean, mean - half, mean + half)

    def minus(self, other: Series) -> Series:
        """The difference of two series of different examples, row by row where the steps agree."""
        if not np.array_equal(self.steps, other.steps):  # one side was never measured: there is no difference
            none = np.zeros(0)
            return Series(none, none, none, none, none, self.same)
        values = self.values - other.values
        low = values - np.hypot(self.values - self.low, other.high - other.values)
        high = values + np.hypot(self.high - self.values, other.values - other.low)
        return Series(self.steps, values, low, high, np.minimum(self.n, other.n), self.same)

    @property
    def measured(self) -> bool:
        """Whether rows carry intervals."""
        return not np.isnan(self.low).all()

    @property
    def window(self) -> int:
        """How many rows make up an end: a tenth; of noisier training rows a fifth, and five where there are ten."""
        return max(1, len(self) // 10 if self.same else min(len(self) // 2, max(5, len(self) // 5)))

    @property
    def start(self) -> Level:
        """What was measured first: one row, or the first training rows."""
        return self.level(slice(0, 1 if self.same else self.window))

    @property
    def end(self) -> Level:
        """The last rows."""
        return self.level(slice(len(self) - self.window, None))

    @property
    def change(self) -> Change | None:
        """From start to end, where there are two ends."""
        return Change(self.start, self.end) if len(self) >= 2 else None


def _trimmed(values: np.ndarray) -> Level:
    """Trimmed mean with its t interval (Tukey and McLaughlin 1963): no single row, however wild, decides."""
    rows = len(values)
    cut = max(1, rows // 10) if rows >= 5 else 0
    ordered = np.sort(values)
    kept = ordered[cut : rows - cut]
    spread = Moments.of(np.clip(values, kept[0], kept[-1])).variance ** 0.5
    half = float(stdtrit(len(kept) - 1, 0.975)) * spread / (len(kept) / rows * math.sqrt(rows))
    return Level(float(kept.mean()), float(kept.mean()) - half, float(kept.mean()) + half)


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
