"""Figures with the words beside them: curves, calibration, reward against KL, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from prefiere.doctor import reward_models
from prefiere.doctor.case import Case
from prefiere.doctor.words import number
from prefiere.report import curves, figures
from prefiere.report.caveats import Figure, Line, outlined
from prefiere.report.frontier import Frontier, frontier
from prefiere.report.panels import Panel
from prefiere.report.say import method_title, phrase, told_column, told_interval

TIMES = ("sampling", "scoring", "measuring", "learning")


def captioned(panels: Iterable[Panel], cases: Sequence[Case], names: Sequence[str]) -> list[Figure]:
    """The panels that any run has, each with the ends of its lines.

    With several runs only the line to judge by is put in words: held out where there is such, else training.
    """
    found: list[Figure] = []
    for panel in panels:
        svg = curves.draw_panel(panel, cases)
        if svg is None:
            continue
        lines: list[Line] = []
        for i, case in enumerate(cases):
            told = not panel.of(case)
            for key, kind in ((panel.column.measured, _measured(panel)), (panel.column.training, _training(case))):
                series = case.series(key)
                if not len(series) or told:
                    continue
                told = len(cases) > 1
                colour = "train" if key == panel.column.training and len(cases) == 1 else curves.colour(i)
                who = f"{names[i]}, {kind}" if len(cases) > 1 else kind
                lines.append((colour, who, told_interval(series.end, panel.key)))
        found.append((replace(panel, column=told_column(panel.column)), Markup(svg), lines))
    return found


def _measured(panel: Panel) -> str:
    return phrase("line.sampled" if panel.column.sampled else "line.held_out")


def _training(case: Case) -> str:
    return phrase("line.rollouts" if case.family == "policy" else "line.training")


def calibration_figures(cases: Sequence[Case], names: Sequence[str]) -> list[Figure]:
    """Reliability and accuracy by length of the reward models among the runs."""
    sure, length = figures.reliability_figure(cases), figures.by_length(cases)
    said: list[Line] = []
    ruled: list[Line] = []
    for i, case in enumerate(cases):
        error, loss = case.calibration.get("ece"), reward_models.level(case.calibration.get("log_loss"))
        right, rule = reward_models.level(case.calibration.get("accuracy")), reward_models.baseline(case)
        mine = [("error", number(error), number(error))] if isinstance(error, int | float) else []
        if loss is not None:
            mine.append(("loss", told_interval(loss), number(loss.mean)))
        said += _lines(mine, i, names)
        mine = []
        if right is not None:
            share = number(right.mean, reward_models.ACCURACY)
            mine.append(("model", told_interval(right, reward_models.ACCURACY), share))
        if rule is not None:
            share = number(rule[1].mean, reward_models.ACCURACY)
            mine.append((rule[0], told_interval(rule[1], reward_models.ACCURACY), share))
        ruled += _lines(mine, i, names)
    found = [(outlined("reliability"), sure, said), (outlined("by_length"), length, ruled)]
    return [(panel, Markup(svg), lines) for panel, svg, lines in found if svg is not None]


_SHORT = {"model": "", "error": "calibration.error_short"}
_SHORT |= dict.fromkeys(("longer", "shorter"), "calibration.by_length")
_RULES = ("longer", "shorter")


def _lines(told: list[tuple[str, str, str]], run: int, names: Sequence[str]) -> list[Line]:
    """What is told of a run (key, value with its interval, value alone), a line each; beside other runs as one line,
    without intervals."""
    colour = curves.colour(run)
    if len(names) == 1:
        return [("train" if key in _RULES else colour, phrase(f"calibration.{key}"), value) for key, value, _ in told]
    short = [
        f"{phrase(k) if (k := _SHORT.get(key, f'calibration.{key}')) else ''} {value}".strip() for key, _, value in told
    ]
    return [(colour, names[run], ", ".join(short))] if told else []


@dataclass(frozen=True, slots=True)
class Frontiers:
    """Reward against KL as the page shows it. A row of ``table``: colour, run, method, score at equal KL, score at the
    end, KL at the end."""

    svg: Markup
    narrow: Markup
    score: str
    roots: bool
    lines: tuple[tuple[str, str], ...]
    table: tuple[tuple[str, str, str, str, str, str], ...]
    kl: str
    ahead: str | None
    unmeasured: bool
    still: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    same_prompts: bool


def reward_against_kl(cases: Sequence[Case], names: Sequence[str]) -> Frontiers | None:
    """The figure and its table, where runs have a score and a KL."""
    found = frontier(cases)
    if found is None:
        return None
    svg, roots = figures.draw_frontier(found)
    return Frontiers(
        svg=Markup(svg),
        narrow=Markup(figures.draw_frontier(found, figures.NARROW)[0]),
        score=phrase("score.judge" if found.key == "samples/score" else "score.reward"),
        roots=roots,
        lines=tuple((curves.colour(p.run), names[p.run]) for p in found.paths),
        table=tuple(_rows(found, cases, names)),
        kl=number(found.equal_kl) if found.equal_kl is not None else "",
        ahead=names[found.ahead] if found.ahead is not None else None,
        unmeasured=any(np.isnan(p.score.low).any() for p in found.moved),
        still=tuple(names[p.run] for p in found.paths if not p.moved),
        left_out=tuple((names[i], why) for i, why in found.left_out),
        same_prompts=found.same_prompts,
    )


def _rows(
    found: Frontier, cases: Sequence[Case], names: Sequence[str]
) -> Iterable[tuple[str, str, str, str, str, str]]:
    if (kl := found.equal_kl) is None:
        return
    for path in sorted(found.moved, key=lambda p: -p.at(kl).mean):
        method = str(cases[path.run].recipe.get("method", ""))
        last = slice(len(path.kl) - 1, None)
        ends = (told_interval(path.score.level(last)), told_interval(path.kl.level(last)))
        at = path.at(kl)
        told = told_interval(at) if at.known else phrase("not_measured", value=told_interval(at))
        yield (
            curves.colour(path.run),
            names[path.run],
            method_title(method),
            told,
            *ends,
        )


def times(cases: Sequence[Case], names: Sequence[str]) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """(run, [(what, its share in per cent, in words)]) of each run that timed its parts."""
    found = []
    for case, name in zip(cases, names, strict=True):
        spent = {what: float(case.series(f"time/{what}").values.sum()) for what in TIMES}
        total = sum(spent.values())
        if total > 0:
            parts = [(what, 100 * s / total, f"{100 * s / total:.0f}%") for what, s in spent.items() if s > 0]
            found.append((name, parts))
    return found


def tags(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What is told of an answer: its score, its reward, its length."""
    told = [(phrase(f"tag.{name}"), row.get(name)) for name in ("score", "reward")]
    return [(n, number(v) if isinstance(v, float) and not v.is_integer() else v) for n, v in told if v is not None]
