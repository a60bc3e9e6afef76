"""How right a reward model is, how well it knows how right it is, and how much of that is length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefiere.evaluate.pairs import PairScores
from prefiere.stats import Estimate, clustered_mean

BINS, FEWEST = 10, 20
"""At most so many bins of equally many pairs, with so many in each at least (as far as there are)."""


def calibration(pairs: PairScores) -> dict[str, Any]:
    """What ``calibration.json`` holds, from scores whose differences are log-odds.

    accuracy, log_loss: mean, low, high, clustered by prompt. reliability: pairs in bins of how sure the model is that
    the answer it prefers is the preferred one (``predicted``, from 0.5 to 1), and how often it is (``observed``).
    ece: the mean distance of the two, weighted by pairs (Naeini et al. 2015). length: see `of_length`.
    """
    sure = 1 / (1 + np.exp(-np.abs(pairs.margins)))
    right = pairs.right()
    bins: list[dict[str, Any]] = []
    for members in _bins(sure):
        seen = clustered_mean(right[members], pairs.prompts[members], share=True)
        bins.append(
            {
                "low": float(sure[members].min()),
                "high": float(sure[members].max()),
                "predicted": float(sure[members].mean()),
                "observed": seen.mean,
                "observed_low": seen.low,
                "observed_high": seen.high,
                "n": len(members),
            }
        )
    return {
        "n": len(sure),
        "accuracy": plain(pairs.accuracy()),
        "log_loss": plain(clustered_mean(log_loss(pairs), pairs.prompts, share=False)),
        "ece": sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in bins) / max(1, len(sure)),
        "reliability": bins,
        "length": of_length(pairs),
    }


def log_loss(pairs: PairScores) -> np.ndarray:
    """float64 [n]: -p log sigmoid(m) - (1 - p) log sigmoid(-m) in nats, m the difference of scores, p the label."""
    m, p = pairs.margins, pairs.labels
    loss: np.ndarray = p * np.logaddexp(0, -m) + (1 - p) * np.logaddexp(0, m)
    return loss


def of_length(pairs: PairScores) -> dict[str, Any]:
    """How far one comes by length alone, and how right the model is by how much longer the chosen answer is.

    baseline: always choosing the longer answer, or the shorter one, whichever is right more often on these pairs
    (``rule``). by_difference: accuracy in bins of tokens of chosen less rejected, ``low`` to ``high``.
    """
    difference = pairs.tokens[:, 0] - pairs.tokens[:, 1]
    longer = 0.5 + 0.5 * np.sign(difference)
    longer = pairs.labels * longer + (1 - pairs.labels) * (1 - longer)
    rule = "longer" if longer.mean() >= 0.5 else "shorter"
    bins = []
    for side in (-1, 0, 1):  # no bin holds differences of both signs
        own = np.flatnonzero(np.sign(difference) == side)
        for members in _bins(difference[own].astype(float), BINS // 3):
            chosen = own[members]
            seen = clustered_mean(pairs.right()[chosen], pairs.prompts[chosen], share=True)
            span = {"low": int(difference[chosen].min()), "high": int(difference[chosen].max())}
            bins.append({**span, "accuracy": plain(seen), "n": len(chosen)})
    hit = longer if rule == "longer" else 1 - longer
    return {"baseline": plain(clustered_mean(hit, pairs.prompts, share=True)), "rule": rule, "by_difference": bins}


def plain(e: Estimate) -> list[float]:
    """Mean, low, high: for JSON."""
    return [e.mean, e.low, e.high]


def _bins(values: np.ndarray, most: int = BINS) -> Sequence[np.ndarray]:
    """Indices of the values in bins of about equal size, in order; equal values share a bin."""
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    starts = [p[0] for p in np.array_split(np.arange(len(values)), max(1, min(most, len(values) // FEWEST)))]
    firsts = sorted({int(np.searchsorted(values[order], values[order[s]])) for s in starts})
    return np.split(order, firsts[1:])
