"""The curves as inline SVG whose colours are the page's CSS variables, so that they follow its light or dark theme.

Matplotlib draws (object API, no global figure state); its output is reduced to a bare ``<svg>`` with text left as text.
No name or text of a run goes into a figure: whatever needs escaping is the page's business.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from prefiere.doctor.case import Case
from prefiere.doctor.series import Series
from prefiere.metrics import ROUNDED_ZERO
from prefiere.report.panels import Panel
from prefiere.report.say import phrase

_MOST_POINTS = 400
COLOURS = 8
"""How many runs have a colour of their own."""


# Stand-ins that no other part of a figure uses; each becomes a CSS variable of the page.
_INK, MUTED, _GRID, _TRAIN = "#010a01", "#010a02", "#010a03", "#010a04"
_VARIABLES = {_INK: "ink", MUTED: "muted", _GRID: "line", _TRAIN: "train"} | {
    f"#010a{0x10 + i:02x}": f"run-{i + 1}" for i in range(COLOURS)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.xmargin": 0.02,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "path.simplify": True,
}


def colour(run: int) -> str:
    """The CSS variable of the run at this place; after the last colour they begin again."""
    return f"run-{run % COLOURS + 1}"


def draw_panel(panel: Panel, cases: Sequence[Case]) -> str | None:
    """One figure with every run that has the metric, as ``<svg>``; None where none has it.

    Validation and sampled answers are solid lines with a 95% band. Training is thin: with one run the rows as logged
    behind their course, with several the course alone, dashed, in the run's colour. A course ends at the number that
    words give for its end (`Series.course`).
    """
    none = Series.of((), "")
    curves = [
        (case.series(panel.column.training), case.series(panel.column.measured)) if panel.of(case) else (none, none)
        for case in cases
    ]
    shown = [s for pair in curves for s in pair if len(s)]
    if not shown or (panel.varies and all(np.ptp(s.values) == 0 for s in shown)):
        return None

    def onto(axes: Axes) -> None:
        spans: list[np.ndarray] = []
        for i, (train, held_out) in enumerate(curves):
            spans += _training(axes, train, ink(i) if len(cases) > 1 else _TRAIN, raw=len(cases) == 1)
            spans += _measured(axes, held_out, ink(i))
            if len(cases) == 1 and not len(held_out):
                spans += _band(axes, train, _TRAIN)
        _dress(axes, panel, np.concatenate(spans))

    return svg(onto, f"scores {panel.key}" if panel.scores else panel.key)


def svg(onto: Callable[[Axes], None], name: str, size: tuple[float, float] = (4.7, 2.6)) -> str:
    """A figure of ``size`` inches in the page's style, drawn by ``onto``; ``name`` makes its inner ids its own."""
    with style.context(["default", _STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=size, layout="constrained")
        onto(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _bare(buffer.getvalue())


def ink(run: int) -> str:
    """What to draw the run at this place with: it becomes the page's ``colour(run)``."""
    return next(c for c, name in _VARIABLES.items() if name == colour(run))


def _training(axes: Axes, series: Series, own: str, *, raw: bool) -> list[np.ndarray]:
    """Draw a noisy series; returns the values that the axis must show."""
    if not len(series):
        return []
    at, smooth = _shown(series), series.course().values if len(series) > 8 else None
    if raw or smooth is None:
        axes.plot(series.steps[at], series.values[at], color=own, lw=0.8, alpha=0.35 if raw else 0.6)
    if smooth is None:
        return [series.values]
    axes.plot(series.steps[at], smooth[at], color=own, lw=1.3, ls="-" if raw else (0, (4, 2)), alpha=0.9)
    return [smooth, np.percentile(series.values, [2, 98]) if raw else smooth]


def _shown(series: Series) -> np.ndarray:
    """Places of as many rows as a screen shows, the last one among them: int64 [points]."""
    return np.arange(len(series) - 1, -1, -max(1, len(series) // _MOST_POINTS))[::-1]


def _measured(axes: Axes, series: Series, own: str) -> list[np.ndarray]:
    """Draw a series with its intervals; returns the values that the axis must show."""
    if not len(series):
        return []
    at = _shown(series)
    steps, values, low, high, n = (x[at] for x in (series.steps, series.values, series.low, series.high, series.n))
    series = Series(steps, values, low, high, n, series.same)
    known = ~np.isnan(series.low)
    axes.fill_between(series.steps, series.low, series.high, where=known, color=own, alpha=0.16, lw=0)
    if len(series) == 1:
        axes.errorbar(series.steps, series.values, _bars(series), color=own, fmt="o", ms=5)
    else:
        dots = "o" if len(series) <= 25 else None
        axes.plot(series.steps, series.values, color=own, lw=2, marker=dots, ms=3.5, clip_on=False)
    return [series.values, series.low[known], series.high[known]]


def _band(axes: Axes, series: Series, own: str) -> list[np.ndarray]:
    """The intervals of a noisy series' course; returns the values that the axis must show."""
    if len(series) <= 8 or np.isnan(series.low).any():
        return []
    course, at = series.course(), _shown(series)
    axes.fill_between(course.steps[at], course.low[at], course.high[at], color=own, alpha=0.16, lw=0)
    return [course.low, course.high]


def _bars(series: Series) -> np.ndarray | None:
    return None if np.isnan(series.low).any() else np.stack([series.values - series.low, series.high - series.values])


def _dress(axes: Axes, panel: Panel, shown: np.ndarray) -> None:
    """Limits, reference line, labels."""
    low, high = float(shown.min()), float(shown.max())
    if panel.reference is not None:
        low, high = min(low, panel.reference), max(high, panel.reference)
    pad = 0.06 * (high - low) if high - low > ROUNDED_ZERO else max(0.1 * abs(high), 0.05)
    # The reference's name stands on the side of its line that the curves leave free at the end.
    ends = [np.asarray(line.get_ydata(), dtype=np.float64)[-1] for line in axes.lines]
    above = panel.reference is not None and float(np.median(ends)) < panel.reference
    if panel.reference is not None:
        room = 0.14 * (high - low)
        low, high = (low, max(high, panel.reference + room)) if above else (min(low, panel.reference - room), high)
    low, high = low - pad, high + pad
    if panel.column.share:
        low, high = max(low, 0.0), min(high, 1.0)
    axes.set_ylim(low, high)
    if panel.reference is not None:
        axes.axhline(panel.reference, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
        axes.annotate(
            phrase(panel.reference_name), (1, panel.reference), (0, 3 if above else -3), ha="right",
            va="bottom" if above else "top", xycoords=("axes fraction", "data"), textcoords="offset points",
            color=MUTED, fontsize=9,
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if panel.column.share:
        per_cent(axes.yaxis)
    axes.set_xlabel(phrase("axis.update"), loc="right", fontsize=10)


def per_cent(axis: Axis) -> None:
    """Ticks of a share in per cent, in so many digits that no two of them read the same. The axis' limits are set."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ticks = axis.get_majorticklocs()
    apart = 100 * float(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    axis.set_major_formatter(PercentFormatter(1.0, decimals=max(0, math.ceil(-math.log10(apart) - 1e-9))))


def _bare(svg: str) -> str:
    """From ``<svg`` on, without fixed size, metadata, page-wide style, font names and ids that the page may have.

    What elements have as style becomes attributes: a page whose policy forbids inline styles shows the same figure.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r'font: ([\d.]+px) [^;"]*', r"font-size: \1", svg)
    svg = re.sub(r' style="([^"]*)"', lambda m: _attributes(m[1]), svg)
    svg = re.sub(r"#010a[0-9a-f]{2}", lambda m: f"var(--{_VARIABLES[m[0]]})", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    return f'<svg {box[0] if box else ""} aria-hidden="true">' + svg[svg.index(">") + 1 :].strip()


def _attributes(declared: str) -> str:
    """``fill: none; stroke-width: 2`` as `` fill="none" stroke-width="2"``: each is an attribute of SVG, too."""
    pairs = (d.split(":", 1) for d in declared.split(";") if ":" in d)
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs)
