"""Pairs shown to a person who does not know which answer was preferred: the only test of labels that are all swapped.

Whoever agrees with the labels no more often than a coin has seen noise; who disagrees nearly always, swapped labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import bdtr

from prefiere.data.schema import PreferencePair, Text

SHOWN_BLIND = 15
"""Shown at most: 12 agreements of 15, or 3, happen by chance in 1.8%."""
CHANCE = 0.025
RIGHT = 0.9
"""Share of labels that are as a person sees them, where labels are sound."""
OPEN = 0.06
"""Chance that sound labels look like noise, from which on it takes more judgements (11 of 15: 5.6%, 10 of 13: 13%)."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A pair as it is shown: whether the preferred answer stands first."""

    pair: PreferencePair
    first: bool

    @property
    def answers(self) -> tuple[Text, Text]:
        """Both answers in the order in which they are shown."""
        p = self.pair
        better, worse = (p.chosen, p.rejected) if p.label > 0.5 else (p.rejected, p.chosen)
        return (better, worse) if self.first else (worse, better)


@dataclass(frozen=True, slots=True)
class BlindVerdict:
    """What a person's choices say of the labels. chance: that this is wrong. Of fine and swapped, that labels by coin
    flips agree so often, or so seldom; of noise, that sound labels (or swapped ones) agree no more (no less) often, and
    do so nine times in ten; 1 where too few were judged."""

    says: Literal["fine", "swapped", "noise", "too_few"]
    agreed: int
    of: int
    chance: float


def drawn(pairs: Iterable[PreferencePair], seed: int, most: int = SHOWN_BLIND) -> list[Shown]:
    """Pairs with a clear preference, drawn by seed from all of them, each in an order by seed."""
    kept: list[PreferencePair] = []
    rng = np.random.default_rng(seed)
    for seen, pair in enumerate(p for p in pairs if p.label != 0.5):
        if len(kept) < most:
            kept.append(pair)
        elif (at := int(rng.integers(0, seen + 1))) < most:
            kept[at] = pair
    turned = rng.integers(0, 2, len(kept)).astype(bool)
    order = rng.permutation(len(kept))
    return [Shown(kept[i], bool(turned[i])) for i in order]


def blind_verdict(shown: Sequence[Shown], chosen: Sequence[bool | None]) -> BlindVerdict:
    """chosen: for each pair whether the first answer was taken; None where none was."""
    agreed = [c == s.first for s, c in zip(shown, chosen, strict=True) if c is not None]
    k, n = sum(agreed), len(agreed)
    if 0.5**n >= CHANCE:  # as few as these could agree by chance, whatever was chosen
        return BlindVerdict("too_few", k, n, 1.0)
    few, many = _at_most(k, n, 0.5), _at_most(n - k, n, 0.5)
    if many < CHANCE:
        return BlindVerdict("fine", k, n, many)
    if few < CHANCE:
        return BlindVerdict("swapped", k, n, few)
    chance = max(_at_most(k, n, RIGHT), _at_most(n - k, n, RIGHT))
    return BlindVerdict("noise", k, n, chance) if chance < OPEN else BlindVerdict("too_few", k, n, 1.0)


def _at_most(k: int, n: int, p: float) -> float:
    """How likely ``k`` or fewer of ``n`` are, each with probability p."""
    return float(bdtr(k, n, p))
