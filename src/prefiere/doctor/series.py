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
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import stdtrit

from prefiere.metrics import measured_again
from prefiere.stats import float_of


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

    @property
    def high(self) -> float:
        """Upper 95% bound of the difference."""
        return -Change(self.after, self.before).low

    def rises(self, least: float = 0.0) -> bool:
        """Whether it rose by more than ``least``, beyond the noise."""
        if math.isnan(self.low):  # unknown noise: only twice what would matter is believed
            return least > 0 and self.diff > 2 * least
        return self.low > least

    def falls(self, least: float = 0.0) -> bool:
        """Whether it fell by more than ``least``, beyond the noise."""
        return Change(self.after, self.before).rises(least)

    def may_rise(self, least: float) -> bool:
        """Whether it went up, and a rise of ``least`` is within its interval: nothing says that it did not rise."""
        return self.diff > 0 and self.high > least > 0

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
        found = sorted((r for r in rows if float_of(r.get(key)) is not None), key=lambda r: r.get("step", 0))

        def column(name: str, missing: float) -> np.ndarray:
            values = [float_of(r.get(name)) for r in found]
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
            (middle,), (half,) = _trimmed(values[None])
            return Level(float(middle), float(middle - half), float(middle + half))
        half = float(np.linalg.norm((high - low) / 2)) / len(values) if known else math.nan
        return Level(mean, mean - half, mean + half)

    def course(self) -> Series:
        """Rows of different examples as a smooth course: each is the level of the `window` rows around it, at the ends
        of the first and the last ones, so that it begins at `start` and ends at `end`. Needs a window of 3 or more."""
        mean, half = _trimmed(sliding_window_view(self.values, self.window))
        at = np.clip(np.arange(len(self)) - self.window // 2, 0, len(mean) - 1)
        return Series(self.steps, mean[at], (mean - half)[at], (mean + half)[at], self.n, self.same)

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


def _trimmed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trimmed means of [n, rows] and the half-widths of their t intervals, each [n]: no single value, however wild,
    decides (Tukey and McLaughlin 1963)."""
    rows = values.shape[1]
    cut = max(1, rows // 10) if rows >= 5 else 0
    ordered = np.sort(values, axis=1)
    kept = ordered[:, cut : rows - cut]
    spread = np.clip(ordered, kept[:, :1], kept[:, -1:]).std(axis=1, ddof=1) * (np.ptp(kept, axis=1) > 0)
    share = kept.shape[1] / rows
    return kept.mean(axis=1), float(stdtrit(kept.shape[1] - 1, 0.975)) * spread / (share * math.sqrt(rows))
