"""Which answers stand at a prompt that they do not answer: what rare words show of a table whose rows or columns have
slipped against each other, before any model.

An answer takes up rare words of what was asked. One that has none of its own prompt's may share some with another
prompt by chance; where rows have slipped, the prompt that it shares most with is often one that no answer of its own
speaks of either, or lies a certain number of prompts away. How often is held against the same for the prompts that
answers at the right place share words with besides, and for those that a stray one shares less with.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
"""Prompts other than its own that an answer is held against; the share of the records by which chance is passed, and
the chance of it, from which on answers are said to have slipped."""
IN_STEP = 10
"""Answers that stand as many prompts away from the one that they speak of, from which on rows have slipped by so many:
three times as many as on the other side, since prompts next to each other may be about the same."""
COPIED = 6
"""Words of an answer, or of its prompt, of which all stand in another prompt: that one goes on from them, as the next
turn of a dialogue does."""
OTHERS, TOLD = 8, 4
"""Records whose prompts an answer is held against beside its own, from all over the data; different words of an answer
from which on it is held against any."""
_AT_ONCE = 512
"""Answers whose likeness to all prompts is looked at together."""


@dataclass(frozen=True)
class Elsewhere:
    """``strays`` of n answers have no rare word of their own prompt and some of another; ``share`` of these have most
    of a prompt whose own answer is missing as well, or lie ``apart`` prompts away from it, as ``in_step`` of them do; 0
    where they do not agree. by_chance: the share that chance has; None where no answer is in its place to show it.
    sure: whether words alone do; if not, the data may as well be of several kinds, in one of which answers never take
    up words of their prompts. sources: where they were read. column: which answer of each record it is, where that one
    alone has slipped."""

    strays: int
    n: int
    share: float
    by_chance: float | None
    apart: int
    in_step: int
    sure: bool
    sources: list[str]
    column: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For data.json, with the first `NAMED` places."""
        counted = {"strays": self.strays, "n": self.n, "share": self.share, "by_chance": self.by_chance}
        named = {"count": len(self.sources), "sources": self.sources[:NAMED]}
        where = {} if self.column is None else {"column": self.column}
        return counted | {"apart": self.apart, "in_step": self.in_step, "sure": self.sure} | named | where


@dataclass(frozen=True)
class Placed:
    """``count`` of n answers share a rare word with their own prompt, ``others`` with other prompts alone; by_chance:
    the share that does so with the prompt of another record."""

    count: int
    n: int
    others: int
    by_chance: float

    def to_dict(self) -> dict[str, Any]:
        """For data.json."""
        return {"count": self.count, "n": self.n, "others": self.others, "by_chance": self.by_chance}


@dataclass
class Spoken:
    """The words of prompts and of their answers: of all answers of a record together, and of each in its place (the
    preferred one, the other one), since one column may slip without the rest. ``add`` each record; ``elsewhere`` says
    which answers have slipped, ``placed`` how many speak of their own prompt."""

    asked: _Sets = field(default_factory=lambda: _Sets())
    answered: tuple[_Sets, ...] = ()
    prompts: array[int] = field(default_factory=lambda: array("q"))
    sources: list[str] = field(default_factory=list)
    bad: array[int] = field(default_factory=lambda: array("b"))

    def add(
        self, prompt: int, asked: Iterable[str], answered: Sequence[Iterable[str]], source: str, bad: bool = False
    ) -> None:
        """One record. prompt: int64 key of its prompt; asked: the words of the prompt; answered: those of each answer,
        as many as of the first record, or nothing is noted. bad: it was called no answer to the prompt."""
        if not self.sources:
            self.answered = tuple(_Sets() for _ in answered)
        if len(answered) != len(self.answered):
            return
        self.asked.add(asked)
        for mine, words in zip(self.answered, answered, strict=True):
            mine.add(words)
        self.prompts.append(prompt)
        self.sources.append(source)
        self.bad.append(bad)

    def elsewhere(self) -> Elsewhere | None:
        """What has slipped, beyond chance (Fisher's exact test): of all answers of the records, else of one column."""
        if len(self.sources) < FEWEST:
            return None
        several = len(self.answered) > 1
        looked_at: list[tuple[int | None, _Sets]] = [(None, _Sets.joined(self.answered))] if several else []
        looked_at += [(i if several else None, sets) for i, sets in enumerate(self.answered)]
        found = [replace(f, column=i) for i, sets in looked_at if (f := self._astray(sets)) is not None]
        return next((f for f in found if f.sure), found[0] if found else None)

    def placed(self) -> list[Placed | None]:
        """Of the answers in each place, how many speak of their own prompt, and how many would by chance; None below
        `FEWEST` of them. Answers of fewer words than `TOLD` speak of nothing: a name, a choice."""
        _, first, prompt = np.unique(np.asarray(self.prompts), True, True)
        return [self._placed(answered, first, prompt) for answered in self.answered]

    def filled(self) -> dict[str, Any] | None:
        """Of prompts with several records: how many of the first record of each (or of the last, whichever are more)
        have an answer that speaks of the prompt, and how many of its others; bad answers may do as they like. None of
        few."""
        _, first, prompt = np.unique(np.asarray(self.prompts), True, True)
        good = np.flatnonzero(np.asarray(self.bad) == 0)
        several = good[np.bincount(prompt[good], minlength=len(first))[prompt[good]] > 1]
        if len(several) < FEWEST:
            return None
        asked, said = self._rows(_Sets.joined(self.answered), first)
        own = _share_any(asked[prompt], said)
        ends = {"first": np.unique(prompt[several], return_index=True)[1]}
        ends["last"] = len(several) - 1 - np.unique(prompt[several][::-1], return_index=True)[1]
        found: list[dict[str, Any]] = []
        for end, at in ends.items():
            apart = np.zeros(len(several), bool)
            apart[at] = True
            one, rest = own[several][apart], own[several][~apart]
            found.append({"end": end, "count": int(one.sum()), "of": len(one), "rest": int(rest.sum()), "n": len(rest)})
        return max(found, key=lambda f: int(f["count"]))

    def _placed(self, answered: _Sets, first: np.ndarray, prompt: np.ndarray) -> Placed | None:
        told = np.flatnonzero(np.diff(answered.ends) >= TOLD)
        if len(told) < FEWEST:
            return None
        asked, said = (rows[at] for rows, at in zip(self._rows(answered, first), (prompt[told], told), strict=True))
        own, shared, pairs = _share_any(asked, said), 0, 0
        for k in range(1, OTHERS + 1):
            by = np.roll(np.arange(len(told)), k * len(told) // (OTHERS + 1))
            other = prompt[told][by] != prompt[told]
            shared += int(_share_any(asked[by], said)[other].sum())
            pairs += int(other.sum())
        others = int((~own & (np.diff(said.indptr) > 0)).sum())
        return Placed(int(own.sum()), len(told), others, shared / pairs if pairs else 0.0)

    def _astray(self, answered: _Sets) -> Elsewhere | None:
        n, (_, first, prompt) = len(self.sources), np.unique(np.asarray(self.prompts), True, True)
        own, at, likeness = self._nearest(answered, first, prompt)
        placed, near = own > 0, likeness > 0
        stray = ~placed & near[:, 0]
        for i in np.flatnonzero(stray).tolist():
            words, there = answered.of(i), self.asked.of(int(first[at[i, 0]]))
            stray[i] = not any(len(w) >= COPIED and w <= there for w in (words, self.asked.of(i)))
        if not stray.any():
            return None
        lost = np.bincount(prompt, weights=placed, minlength=len(first)) == 0
        missing, strays = stray & lost[at[:, 0]], int(stray.sum())
        less = near[:, 1:] & (likeness[:, 1:] < 0.99 * likeness[:, :1]) & stray[:, None]
        told, besides = less.any(axis=1), lost[at[placed]][near[placed]]
        beyond = _exceeds(missing[stray], besides, n)
        sure = beyond and _exceeds(missing[told], lost[at[:, 1:]][less], n)
        order = np.argsort(np.argsort(first))  # of prompts, by where each stands first
        away = order[at[:, 0]] - order[prompt]
        apart, most = Counter(away[missing].tolist()).most_common(1)[0] if missing.any() else (0, 0)
        mirrored = int((away[missing] == -apart).sum())
        in_step = most >= max(IN_STEP, EXCESS * n) and 3 * mirrored <= most
        if not (in_step or beyond):
            return None
        wrong = missing & (beyond | (away == apart))
        named = [self.sources[i] for i in np.flatnonzero(wrong)]
        chance = float(besides.mean()) if len(besides) else None
        if not in_step:
            apart = most = 0
        return Elsewhere(strays, n, len(named) / strays, chance, apart, most, sure or in_step, named)

    def _nearest(self, answered: _Sets, first: np.ndarray, prompt: np.ndarray) -> tuple[np.ndarray, ...]:
        """How much of its own prompt each answer has [n]; the other prompts of which it has most, the nearest first
        [n, `NEAREST`], and how much [n, `NEAREST`], 0 where there are no more: rare words, each by the logarithm of how
        rare it is. first: where each different prompt stands first; prompt: which one each record has."""
        asked, said = self._rows(answered, first)
        shape = (len(prompt), NEAREST)
        own, at, likeness = np.zeros(len(prompt)), np.zeros(shape, np.int64), np.zeros(shape)
        for begin in range(0, len(prompt), _AT_ONCE):
            like = (said[begin : begin + _AT_ONCE] @ asked.T).tocsr()
            row = begin + np.repeat(np.arange(like.shape[0]), np.diff(like.indptr))
            mine = like.indices == prompt[row]
            own[row[mine]] = like.data[mine]
            row, to, much = row[~mine], like.indices[~mine], like.data[~mine]
            by = np.lexsort((to, -np.round(much, 7), row))  # of equally near prompts the same on every machine
            row, to, much = row[by], to[by], much[by]
            rank = np.arange(len(row)) - np.searchsorted(row, row)
            few = rank < NEAREST
            at[row[few], rank[few]], likeness[row[few], rank[few]] = to[few], much[few]
        return own, at, likeness

    def _rows(self, answered: _Sets, first: np.ndarray) -> tuple[csr_array, csr_array]:
        """Rare words of each different prompt, 1 where it has one, and of each answer, by how rare they are."""
        words = np.intersect1d(self.asked.words, answered.words)
        asked, said = self.asked.rows(words)[first], answered.rows(words)
        common = np.maximum(asked.sum(axis=0), said.sum(axis=0))
        rare = np.flatnonzero(common <= max(2, min(RARE * said.shape[0], MOST)))
        weights = np.log(said.shape[0] / common[rare])
        return asked[:, rare], said[:, rare].multiply(weights).tocsr()


@dataclass
class _Sets:
    """Sets of words, as hashes one after the other."""

    words: array[int] = field(default_factory=lambda: array("I"))
    ends: array[int] = field(default_factory=lambda: array("q", [0]))

    def add(self, words: Iterable[str]) -> None:
        self.words.extend(set(_told_apart(words)))
        self.ends.append(len(self.words))

    def of(self, i: int) -> set[int]:
        """One of them."""
        return set(self.words[self.ends[i] : self.ends[i + 1]])

    @staticmethod
    def joined(sets: Sequence[_Sets]) -> _Sets:
        """The words of several, place by place."""
        both = _Sets()
        for i in range(len(sets[0].ends) - 1):
            both.words.extend(set().union(*(s.of(i) for s in sets)))
            both.ends.append(len(both.words))
        return both

    def rows(self, words: np.ndarray) -> csr_array:
        """A row for each set, 1 in the columns of its words. words: one for each column, ascending."""
        from scipy.sparse import csr_array

        ours = np.asarray(self.words)
        row = np.repeat(np.arange(len(self.ends) - 1), np.diff(self.ends))
        known = np.isin(ours, words)
        at = (row[known], np.searchsorted(words, ours[known]))
        return csr_array((np.ones(len(at[0])), at), (len(self.ends) - 1, len(words)))


def _share_any(asked: csr_array, said: csr_array) -> np.ndarray:
    """Whether the rows of both have a word in common [n]."""
    return np.asarray(asked.multiply(said).sum(axis=1)).ravel() > 0


def _told_apart(words: Iterable[str]) -> Iterator[int]:
    """Words that can name something: of three letters or more; numbers follow each other by themselves."""
    named = (w for w in words if len(w) > 2 and w.isalnum() and not w.isdecimal())
    return (crc32(w.encode("utf-8", "surrogatepass")) for w in named)


def _exceeds(found: np.ndarray, others: np.ndarray, n: int) -> bool:
    """Whether more of the first are so than of the others (bool each), by `EXCESS` of n records, and not by chance."""
    if not len(found) or not len(others):
        return False
    from scipy.stats import hypergeom

    count, chance = int(found.sum()), int(others.sum())
    if count - chance / len(others) * len(found) < EXCESS * n:
        return False
    return float(hypergeom.sf(count - 1, len(found) + len(others), count + chance, len(found))) < UNLIKELY
