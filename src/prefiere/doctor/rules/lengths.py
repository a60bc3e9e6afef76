"""How much of what was learnt is length: accuracy by which answer is longer, and wins over the start at equal length.

On every road: of held-out pairs (pairs.jsonl), and of sampled answers that a judge scored before training and after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from prefiere.asked.language import Worded
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.rules.labels import side
from prefiere.doctor.series import Level
from prefiere.doctor.words import interval, line, number
from prefiere.stats import float_of, wilson

SHARE = "rewards/accuracies"
"""A column whose numbers are shown in per cent."""
FEWEST_SHOWN, FEWEST_WINS = 20, 50
"""Answers from which wins are shown, with their intervals, and from which a finding is made of them."""


@dataclass(frozen=True)
class Bin:
    """What one of two is next to the other (shorter, about as long, longer), and a share of those that are.

    Of held-out pairs it is the preferred answer, and the share in which it is ranked higher; of sampled answers the one
    after training, and the share in which the judge likes it better than the one before.
    """

    words: str
    right: Level


def _both_lengths(tokens: Any) -> bool:
    return isinstance(tokens, list) and len(tokens) == 2 and None not in map(float_of, tokens)


def right_by_length(case: Case) -> tuple[Bin, ...]:
    """Accuracy of the last validation in bins of tokens of the preferred answer less the other, cut at a tenth of the
    median length; ties and empty bins are left out."""
    rows = [r for r in case.pairs if r.get("split") == "eval" and float_of(r.get("margin")) is not None]
    rows = [r for r in rows if _both_lengths(r.get("tokens"))]
    last = max((r["step"] for r in rows), default=0)
    rows = [r for r in rows if r["step"] == last and side(r)]
    if not rows:
        return ()
    tokens = np.asarray([r["tokens"] for r in rows], float)
    sides = np.asarray([side(r) for r in rows], float)
    right = np.asarray([(1 + np.sign(side(r) * r["margin"])) / 2 for r in rows], float)
    return _bins(sides * (tokens[:, 0] - tokens[:, 1]), 0.1 * float(np.median(tokens)), right)


def _bins(longer: np.ndarray, near: float, right: np.ndarray) -> tuple[Bin, ...]:
    """Shares of ``right`` [n] where ``longer`` [n] (tokens) is below, within and above ``near``; none that is empty."""
    parts = (("shorter", longer < -near), ("about as long", abs(longer) <= near), ("longer", longer > near))
    return tuple(Bin(words, _share(right[at])) for words, at in parts if at.any())


def _share(right: np.ndarray) -> Level:
    """The mean of shares [n] in 0..1 with its interval."""
    return Level(float(right.mean()), *wilson(float(right.sum()), len(right)), len(right))


@dataclass(frozen=True)
class Wins:
    """How often the answers after training are judged better than those before. raw: as they are; equal: of answers of
    equal length, as the fit has it; bins: by which of the two is longer, cut as `right_by_length` cuts."""

    raw: Level
    equal: Level
    bins: tuple[Bin, ...]


def wins(case: Case) -> Wins | None:
    """Wins over the start by the judge's score, answers of the same prompt and number against each other.

    A logistic model of a win on tanh(difference of length over its deviation), as the length-controlled win rate of
    Dubois et al. (2024, section 3): at a difference of 0 its intercept is left. None below 20 answers.
    """
    rows = [r for r in case.answers if None not in (float_of(r.get("score")), float_of(r.get("tokens")))]
    steps = sorted({r["step"] for r in rows})
    if len(steps) < 2:
        return None
    before, after = (
        {(r.get("prompt"), r.get("sample")): r for r in rows if r["step"] == s} for s in (steps[0], steps[-1])
    )
    both = [(before[k], after[k]) for k in before.keys() & after.keys()]
    if len(both) < FEWEST_SHOWN:
        return None
    won = np.asarray([(1 + np.sign(b["score"] - a["score"])) / 2 for a, b in both])
    longer = np.asarray([b["tokens"] - a["tokens"] for a, b in both], float)
    spread = float(longer.std())
    x = np.tanh(longer / spread) if spread > 0 else np.zeros(len(longer))
    near = 0.1 * float(np.median([[a["tokens"], b["tokens"]] for a, b in both]))
    return Wins(_share(won), _at_equal_length(won, x), _bins(longer, near, won))


def _at_equal_length(won: np.ndarray, x: np.ndarray) -> Level:
    """sigmoid(a) of P(win) = sigmoid(a + b x), with a 95% interval; a ridge keeps b finite where x decides all."""
    design = np.stack([np.ones_like(x), x], 1)
    ridge = np.diag([1e-6, 0.1])
    beta = np.zeros(2)
    for _ in range(50):  # Newton: the loss is convex
        p = expit(design @ beta)
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + ridge
        step = np.linalg.solve(hessian, design.T @ (won - p) - ridge @ beta)
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    a, half = float(beta[0]), 1.96 * math.sqrt(float(np.linalg.inv(hessian)[0, 0]))
    return Level(float(expit(a)), float(expit(a - half)), float(expit(a + half)), len(won))


def said(case: Case) -> tuple[Worded, ...]:
    """Both as lines of evidence."""
    lines: list[Worded] = []
    if len(parts := right_by_length(case)) > 1:
        lines += [line(f"right.{b.words}", share=interval(b.right, SHARE), n=f"{b.right.n}") for b in parts]
    if (found := wins(case)) is not None:
        lines.append(line("won", raw=interval(found.raw, SHARE), equal=interval(found.equal, SHARE)))
    return tuple(lines)


def pairs_by_length(case: Case) -> Finding | None:
    """On held-out pairs the model is right where the preferred answer is the longer one (or the shorter), and wrong
    more often than right where it is not."""
    parts = {b.words: b.right for b in right_by_length(case)}
    for rule, other in (("longer", "shorter"), ("shorter", "longer")):
        own, against = parts.get(rule), parts.get(other)
        if own is None or against is None or own.n < 10 or against.n < 10:
            continue
        if own.above(0.5) and against.below(0.5):
            return Finding(
                "mostly_length",
                f"It learnt length more than quality: it favours the {rule} answer.",
                "warning",
                f"Where people preferred the {other} answer, the model is wrong more often than right. Either it will "
                f"write ever {rule} answers, whatever they say, or the labels of those pairs are swapped.",
                said(case),
                (
                    Remedy("pairs of answers of similar length"),
                    Remedy("loss_type=simpo (its reward is a mean per token, so length gains nothing)"),
                ),
                sure="possible",
                values={"n": number(against.n)},
            )
    return None


def only_longer(case: Case) -> Finding | None:
    """The judge prefers the answers after training, and at equal length it does not beyond the noise."""
    found = wins(case)
    if found is None or found.raw.n < FEWEST_WINS or not found.raw.above(0.5):
        return None
    if found.equal.above(0.5) or found.equal.mean > 0.55:
        return None
    return Finding(
        "only_longer",
        "The judge likes the answers better only as they have another length.",
        "info",
        "Of answers of equal length, it likes those from before training about as well.",
        said(case),
        (Remedy("a judge that does not look at length, or people, blind: `prefiere compare --ask`"),),
    )
