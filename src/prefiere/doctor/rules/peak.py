"""How far a policy may go before its reward misleads it: the judge's score against the root of the KL.

Gao, Schulman and Hilton (2023, equation 2): for reinforcement learning what answers are truly worth follows
R(d) = d (alpha - beta log d), d the root of the KL. It peaks at log d = alpha / beta - 1, and falls from there on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prefiere.asked.language import Worded
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import set_to
from prefiere.doctor.series import Series
from prefiere.doctor.words import line, number

FEWEST_POINTS = 5
IN_SIGHT = 2.0
"""A peak farther than so many times the largest root of the KL that was sampled is a guess, and is not said."""


@dataclass(frozen=True)
class Gains:
    """Where a run was, sampling by sampling, from the first that lies away from the start on. d: root of the KL in nats
    per answer [points]; gain: the judge's score less that at the start, with its 95% interval, low and high, nan where
    none was logged [points]; end: the KL of the last sampling."""

    d: np.ndarray
    gain: np.ndarray
    low: np.ndarray
    high: np.ndarray
    end: float

    @property
    def farthest(self) -> float:
        """The largest root of the KL."""
        return float(self.d.max())


def gains(case: Case) -> Gains | None:
    """The judge's score over its start, by the root of the KL; None where fewer than five samplings lie away."""
    rows = [r for r in case.rows if isinstance(r.get("samples/kl"), float) and "samples/score" in r]
    kl, score = Series.of(rows, "samples/kl"), Series.of(rows, "samples/score")
    if len(kl) != len(score) or len(kl) < FEWEST_POINTS + 1:
        return None
    away = kl.values > 1e-3
    if away.sum() < FEWEST_POINTS:
        return None
    mean, low, high = (values[away] - score.values[0] for values in (score.values, score.low, score.high))
    return Gains(np.sqrt(kl.values[away]), mean, low, high, float(kl.values[-1]))


@dataclass(frozen=True)
class Peak:
    """A fitted peak: KL there and at the run's end (nats per answer), and what was gained there; sure: whether the bend
    is beyond its noise; in_sight: whether it lies where the run was or not far beyond. alpha, beta: of the formula."""

    kl: float
    end: float
    gain: float
    sure: bool
    in_sight: bool
    alpha: float
    beta: float

    def at(self, d: np.ndarray) -> np.ndarray:
        """The fitted gain at roots of the KL [n], all above 0."""
        return np.asarray(d * (self.alpha - self.beta * np.log(d)))


def fitted(case: Case) -> Peak | None:
    """The peak of the judge's score over its start, by least squares; None where `gains` is none, or where the curve
    does not bend downwards."""
    found = gains(case)
    if found is None:
        return None
    d = found.d
    design = np.stack([d, -d * np.log(d)], 1)
    (alpha, beta), residual, rank, _ = np.linalg.lstsq(design, found.gain, rcond=None)
    if rank < 2 or beta <= 0:
        return None
    spread = float(residual[0]) / max(1, len(d) - 2) if len(residual) else 0.0
    error = math.sqrt(spread * float(np.linalg.inv(design.T @ design)[1, 1]))
    peak = math.exp(min(20.0, float(alpha / beta) - 1))
    height = peak * float(alpha - beta * math.log(peak))
    sure, in_sight = float(beta) > 2 * error, peak <= IN_SIGHT * found.farthest
    return Peak(peak**2, found.end, height, sure, in_sight, float(alpha), float(beta))


def distance_said(case: Case) -> tuple[Worded, ...]:
    """The peak and the run's distance from it as a line of evidence, where the bend is beyond its noise and the peak in
    sight."""
    found = fitted(case)
    if found is None or not found.sure or not found.in_sight:
        return ()
    return (line("peak", kl=number(found.kl), end=number(found.end)),)


def past(case: Case) -> Finding | None:
    """The run ended at one and a half times the KL of the fitted peak or more, and the judge's score had come down from
    it."""
    found, score = fitted(case), case.series("samples/score")
    if found is None or not found.sure or found.end < 1.5 * found.kl or len(score) < 2:
        return None
    best = int(np.argmax(score.values))
    if best == 0 or not score.low[best] > score.values[0]:  # it never got better
        return None
    if not score.end.mean < score.values[best] - (score.values[best] - score.low[best]) / 2:
        return None
    at = int(score.steps[best])
    return Finding(
        "past_the_peak",
        f"The run went on past its best point: the judge liked the answers of step {at} better.",
        "warning",
        "What answers are worth rises with the distance from the start, and falls again beyond a point: there the "
        "reward is no longer right.",
        distance_said(case),
        (set_to("max_kl", float(f"{found.kl:.2g}"), "at which the run stops", -1), set_to("max_steps", at, push=-1)),
        cause=True,
        sure="likely",
    )
