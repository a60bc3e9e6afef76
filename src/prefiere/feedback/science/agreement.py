"""How far people agree: share, Cohen's and Fleiss' kappa, Krippendorff's alpha, with intervals clustered by prompt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np

Ratings: TypeAlias = Mapping[Hashable, Mapping[Hashable, float]]
"""unit -> person -> value: who said what of which pair."""


def agreement_share(ratings: Ratings) -> float:
    """The share of pairs of votes on one unit that are equal; nan without two votes on any."""
    same = total = 0
    for given in ratings.values():
        for a, b in combinations(given.values(), 2):
            same += a == b
            total += 1
    return same / total if total else float("nan")


def cohen(ratings: Ratings, first: Hashable, second: Hashable) -> float:
    """Cohen's kappa (1960) of two people on the units that both rated: (p_o - p_e) / (1 - p_e)."""
    both = [(g[first], g[second]) for g in ratings.values() if first in g and second in g]
    n = len(both)
    if not n:
        return float("nan")
    observed = sum(a == b for a, b in both) / n
    left, right = Counter(a for a, _ in both), Counter(b for _, b in both)
    chance = sum(left[k] * right[k] for k in left) / n**2
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def cohen_mean(ratings: Ratings) -> float:
    """Cohen's kappa of each two people, averaged over the units that both rated; nan where there are none."""
    both = Counter(couple for given in ratings.values() for couple in combinations(sorted(given, key=str), 2))
    kappas = [(cohen(ratings, *couple), n) for couple, n in both.items()]
    defined = [(kappa, n) for kappa, n in kappas if not np.isnan(kappa)]
    weight = sum(n for _, n in defined)
    return sum(kappa * n for kappa, n in defined) / weight if weight else float("nan")


def fleiss(ratings: Ratings) -> float:
    """Fleiss' kappa (1971), for units with any number of votes above one (each unit's agreement counts once)."""
    units = [Counter(g.values()) for g in ratings.values() if len(g) > 1]
    if not units:
        return float("nan")
    within = [sum(k * (k - 1) for k in u.values()) / (m * (m - 1)) for u in units if (m := u.total())]
    total = sum(units, Counter())
    chance = sum((k / total.total()) ** 2 for k in total.values())
    return (float(np.mean(within)) - chance) / (1 - chance) if chance < 1 else float("nan")


def krippendorff(ratings: Ratings, metric: Literal["nominal", "interval"] = "interval") -> float:
    """Krippendorff's alpha = 1 - D_o / D_e, for any number of votes a unit and missing ones (Krippendorff 2011).

    interval: the distance of two values is the square of their difference. nan where no unit has two votes, or where
    every vote is the same.
    """
    units = [np.array(list(g.values()), float) for g in ratings.values() if len(g) > 1]
    if not units:
        return float("nan")
    observed = sum(_disagreement(u, metric) / (len(u) - 1) for u in units)
    everything = np.concatenate(units)
    expected = _disagreement(everything, metric) / (len(everything) - 1)
    return float(1 - observed / expected) if expected else float("nan")


def _disagreement(x: np.ndarray, metric: str) -> float:
    """The sum over ordered pairs of values of their distance."""
    if metric == "interval":
        return float(2 * (len(x) * (x**2).sum() - x.sum() ** 2))
    _, counts = np.unique(x, return_counts=True)
    return float(len(x) ** 2 - (counts**2).sum())


@dataclass(frozen=True)
class Agreement:
    """A statistic and its 95% interval; nan where there is too little."""

    value: float
    low: float
    high: float


def bootstrap(
    ratings: Ratings,
    prompts: Mapping[Hashable, Hashable],
    statistic: Callable[[Ratings], float],
    *,
    rounds: int = 400,
    seed: int = 0,
) -> Agreement:
    """A statistic with the percentile interval of a bootstrap over prompts: pairs of one prompt are drawn together."""
    of_prompt: dict[Hashable, list[Hashable]] = defaultdict(list)
    for unit in ratings:
        of_prompt[prompts[unit]].append(unit)
    groups: Sequence[list[Hashable]] = list(of_prompt.values())
    value = statistic(ratings)
    if len(groups) < 2 or np.isnan(value):
        return Agreement(value, float("nan"), float("nan"))
    rng, found = np.random.default_rng(seed), []
    for _ in range(rounds):
        drawn = rng.integers(0, len(groups), len(groups))
        again: Ratings = {(turn, unit): ratings[unit] for turn, g in enumerate(drawn) for unit in groups[g]}
        found.append(statistic(again))
    low, high = np.nanpercentile(found, [2.5, 97.5]) if not np.all(np.isnan(found)) else (np.nan, np.nan)
    return Agreement(value, float(low), float(high))
