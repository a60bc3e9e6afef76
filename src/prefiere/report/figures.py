"""The figures whose axis is not time: reward against KL, how right a reward model is when it is sure, and by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from prefiere.doctor import reward_models
from prefiere.doctor.case import Case
from prefiere.report.curves import MUTED, ink, per_cent, svg
from prefiere.report.frontier import Frontier, Path
from prefiere.report.say import phrase
from prefiere.stats import float_of

FAR = 8.0
"""From this ratio of the largest to the smallest final KL on, the axis of KL is drawn by roots (as in Gao et al. 2023),
so that the near run is not a dot in the corner."""

_NICE = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


APART = 1 / 5
"""How far apart two crosses of intervals are, in lengths of the axes: nearer ones would be a mesh."""
WIDE, NARROW = (12.0, 4.4), (4.7, 3.6)
"""Inches of the same figure on a desk and on a phone."""


def draw_frontier(shown: Frontier, size: tuple[float, float] = WIDE) -> tuple[str, bool]:
    """Each run's path, its steps as dots, the last one larger, with the intervals of both axes where there is room for
    them; and whether the axis of KL is drawn by roots."""
    last = [float(p.kl.values[-1]) for p in shown.paths if p.moved]
    roots = len(last) > 1 and max(last) > FAR * min(last)
    most = 9 if size == WIDE else 5
    width = max(float(_drawn(p.kl.values, roots).max()) for p in shown.paths)

    def onto(axes: Axes) -> None:
        if roots:
            axes.set_xscale("function", functions=(lambda x: _drawn(x, True), lambda x: np.sign(x) * x**2))
        high = max(float(p.score.values.max()) for p in shown.paths)
        height = high - min(float(p.score.values.min()) for p in shown.paths)
        for path in shown.paths:
            room = roomy(_drawn(path.kl.values, roots) / (width or 1.0), path.score.values / (height or 1.0))
            _path(axes, path, room)
        if (kl := shown.equal_kl) is not None:
            axes.axvline(kl, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
            axes.annotate(phrase("axis.equal_kl"), (kl, 1), (4, -2), ha="left", va="top", color=MUTED, fontsize=9,
                          xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
        left = min(0.0, *(float(p.kl.values.min()) for p in shown.paths))
        right = max(float(np.nanmax([p.kl.values.max(), np.nanmax([*p.kl.high, 0.0])])) for p in shown.paths)
        axes.set_xlim(left - 0.01 * right * (not roots), (right or 1.0) * 1.03)
        axes.xaxis.set_major_locator(FixedLocator(_NICE) if roots else MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel(phrase("axis.kl"), loc="right", fontsize=10)

    return svg(onto, "frontier" if size == WIDE else "narrow frontier", size), roots


def roomy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points [n] of a path, in lengths of the axes, have room for a cross: bool [n]. The last one has; going
    back, each that lies `APART` from all that have."""
    taken: list[int] = []
    for i in reversed(range(len(x))):
        if all(np.hypot(x[i] - x[j], y[i] - y[j]) >= APART for j in taken):
            taken.append(i)
    return np.isin(np.arange(len(x)), taken)


def _drawn(kl: np.ndarray, roots: bool) -> np.ndarray:
    """Where values of the KL stand on its axis, up to a factor."""
    return np.asarray(np.sign(kl) * np.abs(kl) ** 0.5 if roots else kl)


def _path(axes: Axes, path: Path, room: np.ndarray) -> None:
    own = ink(path.run)
    for bound in ("kl", "score"):
        series = getattr(path, bound)
        known = room & ~np.isnan(series.low)
        widths = np.stack([series.values - series.low, series.high - series.values])[:, known]
        axes.errorbar(
            path.kl.values[known], path.score.values[known], fmt="none", ecolor=own, alpha=0.3, elinewidth=1.1,
            **{"xerr" if bound == "kl" else "yerr": np.maximum(widths, 0.0)},
        )  # fmt: skip
    axes.plot(path.kl.values, path.score.values, color=own, lw=1.8, marker="o" if len(path.kl) <= 25 else None, ms=3.8)
    axes.plot(path.kl.values[-1:], path.score.values[-1:], color=own, marker="o", ms=8.5)


def reliability_figure(cases: Sequence[Case]) -> str | None:
    """How often each model is right where it says it is p sure, against p; None where none was measured."""
    found = [(i, _points(reward_models.bins(case, "reliability"))) for i, case in enumerate(cases)]
    if not any(len(points) for _, points in found):
        return None

    def onto(axes: Axes) -> None:
        left = min(float(points[:, 0].min()) for _, points in found if len(points))
        least = 0.0 if left < 0.45 else 0.5
        axes.plot([least, 1], [least, 1], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
        for i, points in found:
            _dots(axes, points, ink(i))
        axes.set_xlim(least, 1.0)
        lows = [float(np.nanmin(points[:, 1:3])) for _, points in found if len(points)]
        axes.set_ylim(max(0.0, min(least, *lows) - 0.03), 1.0)
        per_cent(axes.xaxis)
        per_cent(axes.yaxis)
        axes.set_xlabel(phrase("axis.sure"), loc="right", fontsize=10)

    return svg(onto, "reliability")


def by_length(cases: Sequence[Case]) -> str | None:
    """Accuracy over the difference of lengths, chosen less rejected; None where none was measured."""
    found = []
    for i, case in enumerate(cases):
        rows = reward_models.bins(case, "length", "by_difference")
        right = [(b, r) for b in rows if (r := reward_models.level(b.get("accuracy"))) is not None]
        points = [((b["low"] + b["high"]) / 2, r.mean, r.low, r.high) for b, r in right]
        found.append((i, np.array(points, dtype=np.float64).reshape(-1, 4)))
    if not any(len(points) for _, points in found):
        return None

    def onto(axes: Axes) -> None:
        axes.axhline(0.5, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
        axes.annotate(phrase("mark.coin"), (1, 0.5), (0, -3), ha="right", va="top", xycoords=("axes fraction", "data"),
                      textcoords="offset points", color=MUTED, fontsize=9)  # fmt: skip
        if any((points[:, 0] < 0).any() for _, points in found):
            axes.axvline(0, color=MUTED, lw=0.8, alpha=0.5, zorder=1)
        for i, points in found:
            _dots(axes, points, ink(i))
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, min(low, 0.42)), min(1.0, high))
        per_cent(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel(phrase("axis.longer"), loc="right", fontsize=10)

    return svg(onto, "by_length")


def _points(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """predicted, observed and its bounds [bins, 4] of the bins that hold them; a bound that is missing is nan."""
    found = [[b.get(k) for k in ("predicted", "observed", "observed_low", "observed_high")] for b in rows]
    points = [[np.nan if (held := float_of(v)) is None else held for v in row] for row in found]
    points = [row for row in points if np.isfinite(row[:2]).all()]
    return np.array(points, dtype=np.float64).reshape(-1, 4)


def _dots(axes: Axes, points: np.ndarray, own: str) -> None:
    """Points [n, 4] of x, y, low, high."""
    x, y, low, high = points.T
    known = ~np.isnan(low) & ~np.isnan(high)
    bars = np.maximum(np.stack([y - low, high - y])[:, known], 0.0)
    axes.errorbar(x[known], y[known], bars, fmt="none", ecolor=own, alpha=0.45, elinewidth=1.3)
    axes.plot(x, y, color=own, lw=1.6, marker="o", ms=4.5, clip_on=False)
