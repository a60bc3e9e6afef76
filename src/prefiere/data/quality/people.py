"""Who preferred an answer, and where it stood: somebody whose preferences are the reverse of everybody else's, or
follow none of their pattern, and comparisons in which the same place was nearly always chosen."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefiere.data.audit import share
from prefiere.data.quality.told import NAMED, WordsTell
from prefiere.data.schema import PreferencePair
from prefiere.stats import Estimate

FEWEST, MOST = 20, 32
"""Pairs of one person below which nothing is said of them; how many people are looked at, those of most pairs first."""
BY_CHANCE = 0.01
"""Chance, over all people, that somebody is called contrary whose labels are drawn by a coin."""
BELOW_OTHERS = 0.1
"""How far below the others somebody is whose preferences have no pattern of theirs."""


@dataclass(frozen=True)
class Apart:
    """Somebody whose preferences are not the others'. told: how often words tell what they preferred; contrary: these
    words were fitted to the others, and tell the reverse. others: how often words tell what the others preferred."""

    who: str
    told: Estimate
    contrary: bool
    others: Estimate
    sources: tuple[str, ...]


@dataclass
class People:
    """``add`` each pair with a side, as `WordsTell` gets them."""

    who: list[str | None] = field(default_factory=list)
    first: Counter[str | None] = field(default_factory=Counter)
    second: Counter[str | None] = field(default_factory=Counter)

    def add(self, pair: PreferencePair) -> None:
        """A pair whose label is not 0.5."""
        self.who.append(pair.annotator)
        if pair.chosen_first is not None:
            (self.first if pair.chosen_first == (pair.label > 0.5) else self.second)[pair.annotator] += 1

    def apart(self, words: WordsTell) -> list[Apart]:
        """Those whose preferences are not the others', of whom there must be some. words: of the same pairs."""
        known = Counter(w for w in self.who if w is not None)
        some = [who for who, n in known.most_common(MOST) if n >= FEWEST]
        if len(known) < 2:
            return []
        who = np.asarray([w if w is not None else "" for w in self.who], object)
        found = []
        for name in some:
            one = _apart(name, who == name, words, BY_CHANCE / len(some))
            found += [one] if one is not None else []
        return found

    def always(self) -> dict[str, Any] | None:
        """The place, ``first`` or ``second``, that was chosen nearly always: in all comparisons, or by one person."""
        counted: dict[str | None, tuple[int, int]] = {None: (self.first.total(), self.second.total())}
        people = sorted(name for name in self.first | self.second if name is not None)
        counted |= {name: (self.first[name], self.second[name]) for name in people}
        for name, (first, second) in counted.items():
            most, n = max(first, second), first + second
            if n >= FEWEST and (low := share(most, n).low) > 0.9:
                place = "first" if most == first else "second"
                return {"place": place, "count": most, "of": n, "low": low, "who": name}
        return None

    def to_dict(self, words: WordsTell) -> dict[str, Any]:
        """For data.json, with the first `NAMED` places of each."""
        found = [
            {
                "who": a.who, "contrary": a.contrary, "right": a.told.mean, "low": a.told.low, "high": a.told.high,
                "n": a.told.n, "others": a.others.mean, "sources": list(a.sources[:NAMED]),
            }
            for a in self.apart(words)
        ]  # fmt: skip
        return {"apart": found, "always": self.always()}


def _apart(name: str, his_N: np.ndarray, words: WordsTell, unlikely: float) -> Apart | None:
    from scipy.stats import binom

    if (compared := words.of_some(his_N)) is None or compared[0].low > 0.5:
        return None
    told, others = compared[0], compared[1]()
    if others.low <= 0.5:  # nothing was fitted that could be contradicted
        return None
    chance = float(binom.cdf(math.floor(told.mean * told.n), told.n, 0.5))
    contrary = told.high < 0.5 and chance < unlikely
    if not contrary and told.high >= others.low - BELOW_OTHERS:
        return None
    return Apart(name, told, contrary, others, tuple(words.sources[i] for i in np.flatnonzero(his_N)))
