"""Who preferred an answer, and where it stood: somebody whose preferences are the reverse of everybody else's, or
follow none of their pattern, and comparisons in which the same place was nearly always chosen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefiere.data.audit import share
from prefiere.data.quality.told import NAMED, WordsTell
from prefiere.data.schema import PreferencePair
from prefiere.stats import Estimate

FEWEST, MOST = 20, 16
"""Pairs of one person below which nothing is said of them; how many people are looked at, those of most pairs first."""
BY_CHANCE = 0.01
"""Chance, over all people, that somebody is named who prefers by a coin, or just as much less than the others."""
PLACE = 0.85
"""How often the same place was preferred, the low end of the share, from which on it is said."""
LONGEST_NAME = 80
"""Characters of a name that are kept."""
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
        each = zip(some, words.of_each(who == name for name in some), strict=True)
        found = [_apart(name, who == name, told, words, BY_CHANCE / len(some)) for name, told in each]
        return [one for one in found if one is not None]

    def always(self) -> dict[str, Any] | None:
        """The place, ``first`` or ``second``, that was chosen nearly always: in all comparisons, or by one person."""
        counted: dict[str | None, tuple[int, int]] = {None: (self.first.total(), self.second.total())}
        people = sorted(name for name in self.first | self.second if name is not None)
        counted |= {name: (self.first[name], self.second[name]) for name in people}
        for name, (first, second) in counted.items():
            most, n = max(first, second), first + second
            if n >= FEWEST and share(most, n).low > PLACE:
                who = None if name is None else name[:LONGEST_NAME]
                return {"place": "first" if most == first else "second", "count": most, "of": n, "who": who}
        return None

    def to_dict(self, words: WordsTell) -> dict[str, Any]:
        """For data.json, with the first `NAMED` places of each."""
        found = []
        for a in self.apart(words):
            told = {"right": a.told.mean, "low": a.told.low, "high": a.told.high, "n": a.told.n}
            named = {"who": a.who[:LONGEST_NAME], "contrary": a.contrary, "sources": list(a.sources[:NAMED])}
            found.append({**named, **told, "others": a.others.mean})
        return {"apart": found, "always": self.always()}


def _apart(
    name: str, his_N: np.ndarray, compared: tuple[Estimate, Callable[[], Estimate]] | None, words: WordsTell,
    unlikely: float,
) -> Apart | None:  # fmt: skip
    from scipy.stats import binom

    if compared is None or compared[0].low > 0.5:
        return None
    told, others = compared[0], compared[1]()
    if others.low <= 0.5:  # nothing was fitted that could be contradicted
        return None

    def beyond(level: float) -> bool:
        return told.high < level and bool(binom.cdf(math.floor(told.mean * told.n), told.n, level) < unlikely)

    contrary = beyond(0.5)
    if not contrary and not beyond(max(0.5, others.low - BELOW_OTHERS)):
        return None
    return Apart(name, told, contrary, others, tuple(words.sources[i] for i in np.flatnonzero(his_N)))
