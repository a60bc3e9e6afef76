"""From votes to what a loss learns: how far to trust a vote's strength, and how far to trust a person.

Reliability is the one-coin model of Dawid and Skene (1979), each person right with one probability whatever the pair.
Strength shifts a vote's log-odds around its person's. Where nobody states a strength this is Dawid and Skene alone, and
where all people are equally reliable a vote of strength s has the label q_s alone. Numpy, no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

STATED = (0.70, 0.80, 0.90)
"""The accuracy of a vote of strength 1, 2, 3 where no pair was asked twice."""
_AGREE = (0.58, 0.68, 0.82)  # prior agreement of a second vote with a first one of strength 1, 2, 3
_PRIOR = 30.0  # second votes that the prior is worth
_RIGHT, _ALL = 8.0, 10.0  # MAP under a Beta(9, 3) prior
_ITERATIONS, _START, _LOW, _HIGH = 30, 0.8, 0.02, 0.98


def logit(p: float) -> float:
    """log(p / (1 - p))."""
    return math.log(p / (1 - p))


def voter_accuracies(pairs: Iterable[Sequence[tuple[int, int]]]) -> tuple[float, float, float]:
    """q_s, the probability that a vote of strength s = 1, 2, 3 names the better answer.

    pairs: the decided votes on each pair as (side, strength), side -1 or 1. Of doubled pairs, for each vote of strength
    s: A_s = (agreeing other votes + 30 A0_s) / (their number + 30), A0 = (.58, .68, .82). Two independent votes of
    accuracy q agree with q^2 + (1 - q)^2, so q_s = (1 + sqrt(2 A_s - 1)) / 2, made non-decreasing, in [.5, .98].
    Without doubled pairs STATED.
    """
    agreeing, number = [0.0] * 3, [0.0] * 3
    for votes in pairs:
        for i, (side, strength) in enumerate(votes):
            for j, (other, _) in enumerate(votes):
                if i != j:
                    agreeing[strength - 1] += side == other
                    number[strength - 1] += 1
    if not any(number):
        return STATED
    found, floor = [], 0.5
    for s in range(3):
        a = (agreeing[s] + _PRIOR * _AGREE[s]) / (number[s] + _PRIOR)
        floor = max(floor, min(_HIGH, (1 + math.sqrt(max(0.0, 2 * a - 1))) / 2))
        found.append(floor)
    return found[0], found[1], found[2]


@dataclass(frozen=True, slots=True)
class Opinion:
    """A decided vote: by whom, on which pair, for which side (-1 is a, 1 is b), and its log-odds besides its person's.

    ``shift`` is 0 where strengths say nothing.
    """

    person: Hashable
    pair: Hashable
    side: int
    shift: float = 0.0


@dataclass(frozen=True)
class Reliability:
    """What Dawid and Skene find: eta of each person, their votes, and of each pair P(b is the better answer)."""

    eta: Mapping[Hashable, float]
    votes: Mapping[Hashable, int]
    b_better: Mapping[Hashable, float]

    def interval(self, person: Hashable) -> tuple[float, float]:
        """The 95% credible interval of a person's eta, from the Beta posterior that its MAP is the mode of."""
        from scipy.stats import beta

        n = self.votes[person]
        right = self.eta[person] * (n + _ALL) - _RIGHT
        spread = beta(right + _RIGHT + 1, n - right + _ALL - _RIGHT + 1)
        return float(spread.ppf(0.025)), float(spread.ppf(0.975))


def reliability(opinions: Sequence[Opinion], gold: Mapping[Hashable, int] | None = None) -> Reliability:
    """One-coin Dawid-Skene with a prior: 30 rounds of logit p_i = sum (+-) logit eta_k, eta_k = (right + 8)/(n + 10).

    right: the expected number of a person's votes that name the better answer. gold: the true side of some pairs, which
    clamps them. eta starts at .8 and stays in [.02, .98].
    """
    people = {k: i for i, k in enumerate(dict.fromkeys(o.person for o in opinions))}
    pairs = {k: i for i, k in enumerate(dict.fromkeys(o.pair for o in opinions))}
    who = np.array([people[o.person] for o in opinions], int)
    what = np.array([pairs[o.pair] for o in opinions], int)
    side = np.array([o.side for o in opinions], float)
    shift = np.array([o.shift for o in opinions], float)
    known = np.full(len(pairs), np.nan)
    for pair, truth in (gold or {}).items():
        if pair in pairs:
            known[pairs[pair]] = 1.0 if truth > 0 else 0.0
    count = np.bincount(who, minlength=len(people)).astype(float)
    eta = np.full(len(people), _START)
    for round_ in range(_ITERATIONS + 1):
        odds = side * (np.log(eta / (1 - eta))[who] + shift)
        p = 1 / (1 + np.exp(-np.bincount(what, weights=odds, minlength=len(pairs))))
        p = np.where(np.isnan(known), p, known)
        if round_ == _ITERATIONS:
            break
        right = np.bincount(who, weights=np.where(side > 0, p[what], 1 - p[what]), minlength=len(people))
        eta = np.clip((right + _RIGHT) / (count + _ALL), _LOW, _HIGH)
    return Reliability(
        dict(zip(people, eta.tolist(), strict=True)),
        dict(zip(people, count.astype(int).tolist(), strict=True)),
        dict(zip(pairs, p.tolist(), strict=True)),
    )


@dataclass(frozen=True, slots=True)
class Given:
    """A vote as labels take it: ``score`` -3 is answer a by far, 3 answer b by far, 0 a tie."""

    person: Hashable
    pair: Hashable
    score: int


@dataclass(frozen=True, slots=True)
class Label:
    """What a pair teaches: the likelier side (-1 is a), P(it is the better answer), and the weight of its loss."""

    side: int
    label: float
    weight: float


def label_pairs(
    votes: Sequence[Given], gold: Mapping[Hashable, int] | None = None
) -> tuple[dict[Hashable, Label], Reliability]:
    """The label and weight of each pair that was voted on, and how reliable everybody is.

    Decided votes: label max(p, 1 - p) and weight |2p - 1| from `reliability`, each vote's log-odds shifted by
    logit q_s - logit of the mean q. A tie is a vote for 0.5, as heavy as one decided vote of its person, |2 eta - 1|.
    The cross-entropy of a mixture is that of its mean label, so a pair with both is one record: weights add over
    (number of votes), labels are averaged by them.
    """
    by_pair: dict[Hashable, list[Given]] = defaultdict(list)
    for v in votes:
        by_pair[v.pair].append(v)
    decided = [v for v in votes if v.score]
    q = voter_accuracies([(1 if v.score > 0 else -1, abs(v.score)) for v in vs if v.score] for vs in by_pair.values())
    mean = sum(q[abs(v.score) - 1] for v in decided) / len(decided) if decided else 0.5
    shift = {s: logit(q[s - 1]) - logit(mean) for s in (1, 2, 3)} if decided else {}
    found = reliability(
        [Opinion(v.person, v.pair, 1 if v.score > 0 else -1, shift[abs(v.score)]) for v in decided], gold
    )
    labels = {}
    for pair, vs in by_pair.items():
        ties = sum(abs(2 * found.eta.get(v.person, _START) - 1) for v in vs if not v.score)
        sure = sum(1 for v in vs if v.score)
        p = found.b_better.get(pair, 0.5)
        heavy = sure * abs(2 * p - 1)
        weight = (heavy + ties) / len(vs)
        label = (heavy * max(p, 1 - p) + 0.5 * ties) / (heavy + ties) if heavy + ties else 0.5
        labels[pair] = Label(1 if p > 0.5 else -1, min(1.0, max(0.5, label)), weight)
    return labels, found
