"""Which answers stand at a prompt that they do not answer: what rare words show of a table whose rows or columns have
slipped against each other, before any model.

An answer takes up rare words of what was asked. One that has none of its own prompt's may share some with another
prompt by chance; where rows have slipped, that other prompt is often one that no answer of its own speaks of either.
How often is held against the same for the prompts that answers at the right place share words with besides.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from prefiere.data.quality.told import NAMED

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FEWEST, RARE, MOST = 50, 0.02, 64
"""Records below which nothing is said. A word is rare where no more of the prompts than this share have it, and no more
of the answers, and `MOST` of either."""
NEAREST, EXCESS, UNLIKELY = 5, 0.02, 0.001
"""Other prompts that an answer at the right place is held against; the share of the records by which chance is passed,
and the chance of it, from which on answers are said to have slipped."""
IN_STEP = 10
"""Answers that stand as many records away from the prompt that they speak of, or a fiftieth of all, from which on rows
have slipped by so many."""
_AT_ONCE = 512
"""Answers whose likeness to all prompts is held in memory."""


@dataclass(frozen=True)
class Elsewhere:
    """``strays`` of n answers have no rare word of their own prompt and some of another; of these the ``sources`` have
    them of a prompt whose own answer is missing as well: their share, and the one that chance has. apart: by how many
    records ``in_step`` of them lie away from that prompt; 0 where they do not agree."""

    strays: int
    n: int
    share: float
    by_chance: float
    apart: int
    in_step: int
    sources: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For data.json, with the first `NAMED` places."""
        counted = {"strays": self.strays, "n": self.n, "share": self.share, "by_chance": self.by_chance}
        named = {"count": len(self.sources), "sources": self.sources[:NAMED]}
        return counted | {"apart": self.apart, "in_step": self.in_step} | named


@dataclass
class Spoken:
    """The words of prompts and of their answers. ``add`` each record; ``elsewhere`` says which answers have slipped."""

    asked: _Sets = field(default_factory=lambda: _Sets())
    answered: _Sets = field(default_factory=lambda: _Sets())
    prompts: array[int] = field(default_factory=lambda: array("q"))
    sources: list[str] = field(default_factory=list)

    def add(self, prompt: int, asked: Iterable[str], answered: Iterable[str], source: str) -> None:
        """One record. prompt: int64 key of its prompt; asked, answered: the words of the prompt, and of all answers."""
        self.asked.add(asked)
        self.answered.add(answered)
        self.prompts.append(prompt)
        self.sources.append(source)

    def elsewhere(self) -> Elsewhere | None:
        """What has slipped, where that is beyond chance (Fisher's exact test), or where rows have slipped in step."""
        if len(self.sources) < FEWEST:
            return None
        n, (_, first, prompt) = len(self.sources), np.unique(np.asarray(self.prompts), True, True)
        own, at, likeness = self._nearest(first, prompt)
        placed = own > 0
        lost = np.bincount(prompt, weights=placed, minlength=len(first)) == 0
        stray = ~placed & (likeness[:, 0] > 0)
        slipped = stray & lost[at[:, 0]]
        others = at[placed][likeness[placed] > 0]
        strays, found, met, chance = int(stray.sum()), int(slipped.sum()), len(others), int(lost[others].sum())
        if not strays:
            return None
        share, by_chance = found / strays, chance / met if met else 1.0
        apart, most = _in_step(first[at[slipped, 0]] - np.flatnonzero(slipped))
        in_step = most if most >= max(IN_STEP, EXCESS * n) else 0
        beyond = (share - by_chance) * strays >= EXCESS * n and _chance_of(found, strays, chance, met) < UNLIKELY
        if not (in_step or beyond):
            return None
        named = [self.sources[i] for i in np.flatnonzero(slipped)]
        return Elsewhere(strays, n, share, by_chance, apart if in_step else 0, in_step, named)

    def _nearest(self, first: np.ndarray, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How much of its own prompt each answer has [n]; the other prompts of which it has most, the nearest first
        [n, `NEAREST`], and how much [n, `NEAREST`]: rare words, each by the logarithm of how rare it is. first: where
        each different prompt stands first; prompt: which one each record has."""
        asked, answered = self._rows(first)
        shape = (len(prompt), min(NEAREST, len(first)))
        own, at, likeness = np.zeros(len(prompt)), np.zeros(shape, np.int64), np.zeros(shape)
        turn = 1e-9 * np.arange(len(first))  # of prompts that are equally near, the same comes first on every machine
        for begin in range(0, len(prompt), _AT_ONCE):
            here = slice(begin, begin + _AT_ONCE)
            like = (answered[here] @ asked.T).toarray()
            each = np.arange(len(like))
            own[here] = like[each, prompt[here]]
            like[each, prompt[here]] = 0
            far = turn - like
            some = np.argpartition(far, shape[1] - 1, axis=1)[:, : shape[1]]
            order = np.argsort(np.take_along_axis(far, some, 1), axis=1)
            at[here] = np.take_along_axis(some, order, 1)
            likeness[here] = np.take_along_axis(like, at[here], 1)
        return own, at, likeness

    def _rows(self, first: np.ndarray) -> tuple[csr_array, csr_array]:
        """Rare words of each different prompt, 1 where it has one, and of each answer, by how rare they are."""
        words = np.intersect1d(self.asked.words, self.answered.words)
        asked, answered = self.asked.rows(words)[first], self.answered.rows(words)
        common = np.maximum(asked.sum(axis=0), answered.sum(axis=0))
        rare = np.flatnonzero(common <= max(2, min(RARE * answered.shape[0], MOST)))
        weights = np.log(answered.shape[0] / common[rare])
        return asked[:, rare], answered[:, rare].multiply(weights).tocsr()


@dataclass
class _Sets:
    """Sets of words, as hashes one after the other."""

    words: array[int] = field(default_factory=lambda: array("I"))
    ends: array[int] = field(default_factory=lambda: array("q", [0]))

    def add(self, words: Iterable[str]) -> None:
        self.words.extend(set(_told_apart(words)))
        self.ends.append(len(self.words))

    def rows(self, words: np.ndarray) -> csr_array:
        """A row for each set, 1 in the columns of its words. words: one for each column, ascending."""
        from scipy.sparse import csr_array

        ours = np.asarray(self.words)
        row = np.repeat(np.arange(len(self.ends) - 1), np.diff(self.ends))
        known = np.isin(ours, words)
        at = (row[known], np.searchsorted(words, ours[known]))
        return csr_array((np.ones(len(at[0])), at), (len(self.ends) - 1, len(words)))


def _told_apart(words: Iterable[str]) -> Iterator[int]:
    """Words that can name something: of three letters or more."""
    return (crc32(w.encode("utf-8", "surrogatepass")) for w in words if len(w) > 2 and w.isalnum())


def _in_step(apart: np.ndarray) -> tuple[int, int]:
    """The commonest of these distances, and how many there are of it."""
    return Counter(apart.tolist()).most_common(1)[0] if len(apart) else (0, 0)


def _chance_of(found: int, of: int, chance: int, met: int) -> float:
    """How likely so many or more of the first group are, were both drawn from one: Fisher's exact test, one-sided."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(found - 1, of + met, found + chance, of)) if met else 1.0
