"""Figures of what can make a better score mean less: answers that are only longer, and a policy that went too far.

Both come from the doctor's rules, which say of them what is beyond their noise (`doctor.rules.lengths`, `rules.peak`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prefiere.doctor.case import Case
from prefiere.doctor.rules.lengths import Bin, Wins, right_by_length, wins
from prefiere.doctor.rules.peak import Gains, Peak, fitted, gains
from prefiere.doctor.series import Level
from prefiere.doctor.words import number
from prefiere.metrics import Column
from prefiere.report.curves import MUTED, colour, ink, per_cent, svg
from prefiere.report.panels import Panel
from prefiere.report.say import phrase, told_interval

Line = tuple[str, str, str]
"""The colour of a line, what it is, and its value in words."""
Figure = tuple[Panel, Markup, list[Line]]

BINS = ("shorter", "about as long", "longer")
_SHARE = "rewards/accuracies"
"""A column whose numbers are shown in per cent."""
_APART = 0.1
"""How far apart the dots of two runs stand within a bin, in bins."""


def outlined(name: str) -> Panel:
    """The words of a figure that shows no column of the table of metrics."""
    meaning, title, unit = (phrase(f"{name}.{part}") for part in ("meaning", "title", "unit"))
    return Panel(Column(name, title, "", "pair", None, meaning, title, unit))


def caveat_figures(cases: Sequence[Case], names: Sequence[str]) -> list[Figure]:
    """Accuracy and wins by which answer is longer, and the judge's score by the root of the KL, where they are known.

    Reward models have a finer figure of their accuracy by length (`figures.by_length`).
    """
    found = (_right(cases, names), _won(cases, names), _peaks(cases, names))
    return [figure for figure in found if figure is not None]


def _right(cases: Sequence[Case], names: Sequence[str]) -> Figure | None:
    parts = [right_by_length(case) if case.family != "reward" else () for case in cases]
    if not any(len(bins) > 1 for bins in parts):
        return None
    drawn = svg(lambda axes: _binned(axes, parts), "right by length")
    return (
        outlined("right_by_length"),
        Markup(drawn),
        [line for i, b in enumerate(parts) for line in _told(b, i, names)],
    )


def _told(bins: Sequence[Bin], run: int, names: Sequence[str]) -> Iterator[Line]:
    """Each bin's share with its interval and how many it is of; beside other runs the shares alone, in one line."""
    if len(names) == 1:
        for part in bins:
            value = phrase("share_of", share=told_interval(part.right, _SHARE), n=part.right.n)
            yield colour(run), phrase(f"longer.{part.words}"), value
    elif bins:
        yield colour(run), names[run], " · ".join(number(part.right.mean, _SHARE) for part in bins)


def _won(cases: Sequence[Case], names: Sequence[str]) -> Figure | None:
    found = [wins(case) for case in cases]
    if not any(found):
        return None
    lines: list[Line] = []
    for i, case in enumerate(found):
        if case is not None:
            lines += _of_wins(case, i, names)

    def onto(axes: Axes) -> None:
        for i, case in enumerate(found):
            if case is not None:
                axes.axhline(case.equal.mean, color=ink(i), lw=1.2, ls=(0, (4, 2)), alpha=0.8, zorder=1)
        _binned(axes, [case.bins if case is not None else () for case in found])

    return outlined("won_by_length"), Markup(svg(onto, "won by length")), lines


def _of_wins(found: Wins, run: int, names: Sequence[str]) -> list[Line]:
    told: list[tuple[str, Level]] = [("won.raw", found.raw), ("won.equal", found.equal)]
    if len(names) == 1:
        return [(colour(run), phrase(key), told_interval(level, _SHARE)) for key, level in told]
    both = phrase("won.both", **{key.split(".")[1]: number(level.mean, _SHARE) for key, level in told})
    return [(colour(run), names[run], both)]


def _binned(axes: Axes, parts: Sequence[Sequence[Bin]]) -> None:
    """The bins of each run side by side, with their intervals."""
    axes.axhline(0.5, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    for i, bins in enumerate(parts):
        x = np.array([BINS.index(part.words) + _APART * (i - (len(parts) - 1) / 2) for part in bins])
        mean, low, high = (np.array([getattr(p.right, end) for p in bins]) for end in ("mean", "low", "high"))
        bars = np.maximum(np.stack([mean - low, high - mean]), 0.0)
        axes.errorbar(x, mean, bars, fmt="o", color=ink(i), ms=5.5, elinewidth=1.6, alpha=0.95, clip_on=False)
    axes.set_xlim(-0.5, len(BINS) - 0.5)
    axes.set_ylim(0.0, 1.0)
    axes.set_xticks(range(len(BINS)), [phrase(f"longer.{name}") for name in BINS])
    per_cent(axes.yaxis)


def _peaks(cases: Sequence[Case], names: Sequence[str]) -> Figure | None:
    ways = [gains(case) for case in cases]
    if not any(w is not None for w in ways):
        return None
    peaks = [fitted(case) for case in cases]
    shown = [peak if peak is not None and peak.sure and peak.in_sight else None for peak in peaks]
    drawn = svg(lambda axes: _bent(axes, ways, shown), "peak")
    told = [(i, w, peak) for i, (w, peak) in enumerate(zip(ways, shown, strict=True)) if w is not None]
    lines = [line for i, w, peak in told for line in _of_peak(w, peak, i, names)]
    return outlined("peak_of_score"), Markup(drawn), lines


def _bent(axes: Axes, ways: Sequence[Gains | None], peaks: Sequence[Peak | None]) -> None:
    """Each run's samplings as dots with their intervals, its end larger; its fit as a line, and where that peaks."""
    axes.axhline(0.0, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    right = max(found.farthest for found in ways if found is not None)
    right = max([right, *(float(np.sqrt(peak.kl)) for peak in peaks if peak is not None)])
    for i, (found, peak) in enumerate(zip(ways, peaks, strict=True)):
        if found is None:
            continue
        known = ~np.isnan(found.low) & ~np.isnan(found.high)
        bars = np.maximum(np.stack([found.gain - found.low, found.high - found.gain])[:, known], 0.0)
        own = ink(i)
        axes.errorbar(found.d[known], found.gain[known], bars, fmt="none", ecolor=own, alpha=0.3, elinewidth=1.1)
        axes.plot(found.d, found.gain, color=own, lw=0, marker="o", ms=3.8)
        axes.plot(found.d[-1:], found.gain[-1:], color=own, lw=0, marker="o", ms=8.5)
        if peak is not None:
            d = np.linspace(right / 200, max(found.farthest, float(np.sqrt(peak.kl))) * 1.03, 200)
            axes.plot(d, peak.at(d), color=own, lw=1.5, alpha=0.9)
            axes.plot([np.sqrt(peak.kl)] * 2, [0.0, peak.gain], color=own, lw=1.2, ls=(0, (4, 2)), alpha=0.9)
    axes.set_xlim(0.0, right * 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(phrase("axis.root"), loc="right", fontsize=10)


def _of_peak(found: Gains, peak: Peak | None, run: int, names: Sequence[str]) -> list[Line]:
    """Where the fit peaks and where the run ended, both as KL in nats per answer."""
    own, end = colour(run), number(found.end)
    if len(names) > 1:
        told = (
            phrase("summit.none_and_end", end=end)
            if peak is None
            else phrase("summit.both", kl=number(peak.kl), end=end)
        )
        return [(own, names[run], told)]
    if peak is None:
        return [(own, phrase("summit.at"), phrase("summit.none")), (own, phrase("summit.end"), end)]
    times = phrase("summit.times", end=end, times=number(found.end / peak.kl))
    return [(own, phrase("summit.at"), number(peak.kl)), (own, phrase("summit.end"), times)]
