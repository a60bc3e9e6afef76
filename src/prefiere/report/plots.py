"""The curves as inline SVG whose colours are the page's CSS variables, so that they follow its light or dark theme.

Matplotlib draws (object API, no global figure state); its output is reduced to a bare ``<svg>`` with text left as text.
No name or text of a run goes into a figure: whatever needs escaping is the page's business.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.ndimage import gaussian_filter1d

from prefiere.report.case import Case
from prefiere.report.series import Series
from prefiere.report.words import UNITS, is_share

COLOURS = 8
"""How many runs have a colour of their own."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure: the metric, its title, what it means in plain words, and a value to compare with, with its name."""

    key: str
    title: str
    meaning: str
    reference: float | None = None
    reference_name: str = ""

    @property
    def unit(self) -> str:
        if is_share(self.key):
            return {"samples/repetition": "share of three-token runs", "samples/eos_rate": "share of answers"}.get(
                self.key, "share of next tokens" if self.key == "mean_token_accuracy" else "share of comparisons"
            )
        return UNITS.get(self.key, "β × nats" if self.key.startswith("rewards/") else "score")


CURVES = (
    Panel("loss", "Loss", "What training makes smaller. It should fall; when only the held-out line rises again, the "
          "model is learning its examples by heart."),
    Panel("rewards/margins", "Margin", "How much more the model favours the preferred answer over the other one than "
          "it did before training. This should rise.", 0.0, "as before"),
    Panel("rewards/accuracies", "Accuracy", "How often it favours the preferred answer more than it did before. It "
          "counts any difference, however small.", 0.5, "coin flip"),
    Panel("rewards/chosen", "Reward of chosen answers", "How much more likely than before preferred answers became; "
          "below zero, less. A fall is common: the loss sees only the difference.", 0.0, "as before"),
    Panel("rewards/rejected", "Reward of rejected answers", "The same for the answers people liked less. This usually "
          "falls, and faster than the chosen ones.", 0.0, "as before"),
    Panel("samples/kl", "KL to the start", "How far the model's own answers have moved from what it would "
          "have written before. Some is the point; a lot costs what it knew.", 0.0, "not moved"),
    Panel("mean_token_accuracy", "Next tokens guessed right", "How often the example's next token is the one the "
          "model finds most likely."),
)  # fmt: skip
ANSWERS = (
    Panel("samples/score", "Judge's score", "What the judge thinks of answers sampled along the way, always to the "
          "same prompts with the same seeds."),
    Panel("samples/eos_rate", "Answers that end", "Answers that come to an end by themselves, rather than run into "
          "the limit."),
    Panel("samples/length", "Length", "A steady length is healthy. Growing without end, or shrinking to nothing, is "
          "not."),
    Panel("samples/repetition", "Repetition", "Runs of three tokens that the answer contained before. A rise means "
          "that it is stuck in a loop."),
    Panel("samples/ref_logp", "Naturalness", "How likely the answers are to the model from before. A steep fall means "
          "text that nobody ever wrote."),
)  # fmt: skip

# Stand-ins that no other part of a figure uses; each becomes a CSS variable of the page.
_INK, _MUTED, _GRID, _TRAIN = "#010a01", "#010a02", "#010a03", "#010a04"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "line", _TRAIN: "train"} | {
    f"#010a{0x10 + i:02x}": f"run-{i + 1}" for i in range(COLOURS)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
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
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "path.simplify": True,
}


def colour(run: int) -> str:
    """The CSS variable of the run at this place; after the last colour they begin again."""
    return f"run-{run % COLOURS + 1}"


def draw(panel: Panel, cases: Sequence[Case]) -> str | None:
    """One figure with every run that has the metric, as ``<svg>``; None where none has it.

    Validation and sampled answers are solid lines with a 95% band. Training is thin: with one run the rows as logged
    behind their smoothed course, with several the smoothed course alone, dashed, in the run's colour.
    """
    curves = [(case.series(panel.key), case.series(f"eval_{panel.key}")) for case in cases]
    if not any(len(s) for pair in curves for s in pair):
        return None
    with style.context(["default", _STYLE | {"svg.hashsalt": panel.key}]):
        figure = Figure(figsize=(4.7, 2.6), layout="constrained")
        axes = figure.add_subplot()
        spans: list[np.ndarray] = []
        for i, (train, held_out) in enumerate(curves):
            own = next(c for c, name in _VARIABLES.items() if name == colour(i))
            if panel.key.startswith("samples/"):
                spans += _measured(axes, train, own)
            else:
                spans += _training(axes, train, own if len(cases) > 1 else _TRAIN, raw=len(cases) == 1)
                spans += _measured(axes, held_out, own)
        _dress(axes, panel, np.concatenate(spans))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _bare(buffer.getvalue())


def _training(axes: Axes, series: Series, own: str, *, raw: bool) -> list[np.ndarray]:
    """Draw a noisy series; returns the values that the axis must show."""
    if not len(series):
        return []
    smooth = gaussian_filter1d(series.values, max(1.0, len(series) / 25), mode="nearest") if len(series) > 8 else None
    every = max(1, len(series) // 400)
    if raw or smooth is None:
        axes.plot(series.steps[::every], series.values[::every], color=own, lw=0.8, alpha=0.35 if raw else 0.6)
    if smooth is None:
        return [series.values]
    axes.plot(series.steps[::every], smooth[::every], color=own, lw=1.3, ls="-" if raw else (0, (4, 2)), alpha=0.9)
    return [smooth, np.percentile(series.values, [2, 98]) if raw else smooth]


def _measured(axes: Axes, series: Series, own: str) -> list[np.ndarray]:
    """Draw a series with its intervals; returns the values that the axis must show."""
    if not len(series):
        return []
    known = ~np.isnan(series.low)
    axes.fill_between(series.steps, series.low, series.high, where=known, color=own, alpha=0.16, lw=0)
    if len(series) == 1:
        axes.errorbar(series.steps, series.values, _bars(series), color=own, fmt="o", ms=5)
    else:
        axes.plot(series.steps, series.values, color=own, lw=2, marker="o" if len(series) <= 25 else None, ms=3.5)
    return [series.values, series.low[known], series.high[known]]


def _bars(series: Series) -> np.ndarray | None:
    return None if np.isnan(series.low).any() else np.stack([series.values - series.low, series.high - series.values])


def _dress(axes: Axes, panel: Panel, shown: np.ndarray) -> None:
    """Limits, reference line, labels."""
    low, high = float(shown.min()), float(shown.max())
    if panel.reference is not None:
        low, high = min(low, panel.reference), max(high, panel.reference)
    pad = 0.06 * (high - low) or max(0.1 * abs(high), 0.05)
    # The reference's name stands on the side of its line that the curves leave free at the end.
    ends = [np.asarray(line.get_ydata(), dtype=np.float64)[-1] for line in axes.lines]
    above = panel.reference is not None and float(np.median(ends)) < panel.reference
    if panel.reference is not None:
        room = 0.14 * (high - low)
        low, high = (low, max(high, panel.reference + room)) if above else (min(low, panel.reference - room), high)
    low, high = low - pad, high + pad
    if is_share(panel.key):
        low, high = max(low, -0.03), min(high, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.04 else 1))
    axes.set_ylim(low, high)
    if panel.reference is not None:
        axes.axhline(panel.reference, color=_MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
        axes.annotate(
            panel.reference_name, (1, panel.reference), (0, 3 if above else -3), ha="right",
            va="bottom" if above else "top", xycoords=("axes fraction", "data"), textcoords="offset points",
            color=_MUTED, fontsize=9,
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("update", loc="right", fontsize=10)


def coin_flip(cases: Sequence[Case]) -> Panel:
    """The loss panel, with ln 2 as its reference where that is what every run began at."""
    panel = CURVES[0]
    recipes = [c.recipe for c in cases if c.has_reference]
    plain = [r for r in recipes if r.get("loss_type", "sigmoid") == "sigmoid" and not r.get("rpo_alpha")]
    if len(plain) == len(cases):
        return Panel(panel.key, panel.title, panel.meaning, math.log(2), "coin flip")
    return panel


def _bare(svg: str) -> str:
    """From ``<svg`` on, without fixed size, metadata, page-wide style, font names and ids that the page may have."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r'font: ([\d.]+px) [^;"]*', r"font-size: \1", svg)
    svg = re.sub(r"#010a[0-9a-f]{2}", lambda m: f"var(--{_VARIABLES[m[0]]})", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    return f'<svg {box[0] if box else ""} aria-hidden="true">' + svg[svg.index(">") + 1 :].strip()
