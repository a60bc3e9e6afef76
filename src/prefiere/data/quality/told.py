"""Whether words alone tell which answer was preferred, and which labels they contradict: a witness of the labels that
no model's size or rate touches.

A Bradley-Terry model whose score of an answer is a sum over its words, seen as logistic regression on the words that
one answer alone has. Each part of the pairs is predicted by what was fitted to the parts before it (progressive
validation: Blum, Kalai and Langford 1999), so that no pair is predicted by itself or by one that it predicts, and the
interval is honest: in cross-validation any two pairs decide about each other, which doubles the variance of a share
that is chance.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from prefiere.data.audit import folds_by_prompt
from prefiere.data.quality.leaks import together
from prefiere.stats import UNLIKELY, Estimate, between, chance_of_one, clustered_mean, firmly_against

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PARTS, FEWEST, COLUMNS, RIDGE = 10, 50, 2**14, 0.1
"""Parts; pairs below which nothing is said; columns that words are hashed to; the ridge, beside the mean loss. Between
ridges of 0.01 and 0.3, what is told of HH-RLHF's harmless test split differs by 2 points."""
SPOKEN = 0.2
"""How much the words of a part must weigh, beside those of the rest, for anything to be said of its labels."""
OF_EITHER = 500
"""Examples of either set that are looked at to tell them apart."""
FEW = 20
"""Different answers that classes are no more than."""
LEAST_AGAINST, NAMED = 0.02, 1000
"""Share of labels, the low end of its interval, up to which none is called reversed; places that are listed."""


def few_texts(counts: Iterable[int]) -> bool:
    """Whether texts, counted each, are a choice among a few, as classes are: 20 of them, each there several times, make
    up nine tenths."""
    every = list(counts)
    return bool(every) and sum(sorted((n for n in every if n > 1), reverse=True)[:FEW]) >= 0.9 * sum(every)


@dataclass(frozen=True)
class Reversed:
    """Labels that look reversed: ``against`` of n pairs (or single answers) stand with the words of the other side, and
    lie in a cloud of their own. between: how many lie between the two clouds. sources: where they were read."""

    against: Estimate
    n: int
    between: int
    sources: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For data.json, with the first `NAMED` places."""
        share = {"share": self.against.mean, "low": self.against.low, "high": self.against.high}
        named = {"count": len(self.sources), "sources": self.sources[:NAMED]}
        return share | {"n": self.n, "between": self.between} | named


@dataclass
class WordsTell:
    """The words that one answer of a pair alone has, or those of single answers. ``add`` each pair, or ``add_single``
    each answer; ``found`` says how often they tell, ``reversed`` which labels they contradict."""

    words: array[int] = field(default_factory=lambda: array("i"))
    signs: array[int] = field(default_factory=lambda: array("b"))
    ends: array[int] = field(default_factory=lambda: array("q", [0]))
    prompts: array[int] = field(default_factory=lambda: array("q"))
    answers: array[int] = field(default_factory=lambda: array("q"))
    good: array[int] = field(default_factory=lambda: array("b"))
    sources: list[str] = field(default_factory=list)

    def add(self, prompt: int, answers: int, preferred: Iterable[str], other: Iterable[str], source: str = "") -> None:
        """One pair. prompt, answers: int64 keys of its prompt and of its answers in any order. preferred, other: the
        words that only that answer has."""
        self._note(preferred, 1)
        self._note(other, -1)
        self._end(prompt, answers, source)

    def add_single(self, prompt: int, answer: int, words: Iterable[str], good: bool, source: str = "") -> None:
        """One answer that was called good, or not."""
        self._note(words, 1)
        self.good.append(1 if good else -1)
        self._end(prompt, answer, source)

    def _note(self, words: Iterable[str], sign: int) -> None:
        for word in words:
            self.words.append(crc32(word.encode("utf-8", "surrogatepass")) % COLUMNS)
            self.signs.append(sign)

    def _end(self, prompt: int, answers: int, source: str) -> None:
        self.ends.append(len(self.words))
        self.prompts.append(prompt)
        self.answers.append(answers)
        self.sources.append(source)

    def found(self) -> Estimate | None:
        """How often words tell the preferred answer of pairs that they were not fitted to, of prompts and answers that
        were not among these either; None below `FEWEST` pairs, or where too few of them are independent."""
        keys = self._keys()
        return None if keys is None or self.good else _told(self._rows(), keys)

    def of_each(self, parts: Iterable[np.ndarray]) -> Iterator[tuple[Estimate, Callable[[], Estimate]] | None]:
        """For each part of the pairs, bool [N]: how often words that were fitted to the others tell what was preferred
        in it; and, to be called, how often they tell it among the others. None where the others are too few, or where
        what is known of their words says little of this part's: another language has others."""
        keys = together(np.asarray(self.prompts), np.asarray(self.answers))
        rows = None if self.good else self._rows()
        for part in parts:
            yield None if rows is None else _compared(rows, keys, part)

    def reversed(self) -> Reversed | None:
        """The labels that words contradict as firmly as they confirm the others (`stats.chance_of_one`), where there
        are such; each pair is looked at by what was fitted to all other parts, as in confident learning (Northcutt,
        Jiang and Chuang 2021)."""
        keys = self._keys()
        if keys is None or few_texts(np.unique(np.asarray(self.answers), return_counts=True)[1].tolist()):
            return None  # among a few classes, the other one that is right looks like a label that is wrong
        rows, part = self._rows(), folds_by_prompt(keys, PARTS, 0)
        score = np.zeros(len(keys))
        for i in range(PARTS):
            score[part == i] = rows[part == i] @ _fitted(rows[part != i])
        if self.good:  # counted from the middle between good and bad ones, whichever are more
            good = np.asarray(self.good)
            score = score - good * sum(float(np.median((good * score)[good == side])) for side in (1, -1)) / 2
        against = clustered_mean((score < 0).astype(float), keys, share=True)
        if chance_of_one(score) >= UNLIKELY or against.low <= LEAST_AGAINST:
            return None
        if (told := self.found()) is not None and (told.low <= 0.5 or told.high < 1 - against.mean):
            return None  # any two pairs decide about each other, so that clouds come about of chance; words that were
            # fitted to none of the pairs that they predict tell of nothing then, or of fewer than the clouds have right
        named = [self.sources[i] for i in np.flatnonzero(firmly_against(score))]
        return Reversed(against, len(score), between(score), named)

    def kinds(self) -> dict[str, float] | None:
        """How often the words of single answers (or of what they answer) tell good ones from bad ones, either kind
        counted as a half: a share, its interval, and of how many; alike: how many good ones look bad. None for pairs,
        or where too few are independent."""
        keys = self._keys()
        if keys is None or not self.good:
            return None
        good = np.asarray(self.good)
        part, right = folds_by_prompt(keys, PARTS, 0), np.zeros(len(keys))
        rows, weight = self._rows(), np.where(good > 0, 1 / (good > 0).sum(), 1 / (good < 0).sum()) / 2
        for i in range(1, PARTS):
            right[part == i] = _right(rows[part == i] @ _fitted(rows[part < i], weight[part < i]))
        of_each = [(part > 0) & (good == side) for side in (1, -1)]
        if min(len(np.unique(keys[of])) for of in of_each) < PARTS:
            return None
        told = [clustered_mean(right[of], keys[of], share=True) for of in of_each]
        mean, half = sum(t.mean for t in told) / 2, math.hypot(*(t.high - t.low for t in told)) / 4
        ends = {"low": max(0.0, mean - half), "high": min(1.0, mean + half)}
        return {"right": mean, **ends, "n": sum(t.n for t in told), "alike": 1 - told[0].mean}

    def _keys(self) -> np.ndarray | None:
        """What is the same, or of the same prompt or answers; None where too little is independent."""
        keys = together(np.asarray(self.prompts), np.asarray(self.answers))
        one_sided = bool(self.good) and len(set(self.good)) < 2
        return None if one_sided or not _enough(keys) else keys

    def _rows(self) -> csr_array:
        """A row for each pair, of which a sum above 0 agrees with its label."""
        from scipy.sparse import csr_array, diags_array, hstack

        columns, at = np.unique(np.asarray(self.words), return_inverse=True)
        shape = (len(self.sources), len(columns))
        rows = csr_array((np.asarray(self.signs, float), at, np.asarray(self.ends)), shape)
        if not self.good:
            return rows
        constant = csr_array(np.ones((len(self.sources), 1)))
        return csr_array(diags_array(np.asarray(self.good, float)) @ hstack([rows, constant], format="csr"))

    def to_dict(self) -> dict[str, Any] | None:
        """For data.json: the share that is told, its interval, and of how many pairs; reversed: the labels that look
        so."""
        told, turned = self.found(), self.reversed()
        share = {} if told is None else {"right": told.mean, "low": told.low, "high": told.high, "n": told.n}
        return share | ({} if turned is None else {"reversed": turned.to_dict()}) or None


def apart(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> dict[str, float] | None:
    """How often the tokens of texts tell of which of two sets they are, either set counted as a half, as
    `WordsTell.kinds` says it: a classifier two-sample test (Lopez-Paz and Oquab 2017). `OF_EITHER` texts of each,
    int ids, are looked at, and of each so many tokens at its end that lengths do not tell; None where these are too
    few. alike: how many of the one set look like the other."""
    words, some = WordsTell(), [[texts[i] for i in some_of(len(texts))] for texts in (one, other)]
    length = min((int(np.median([len(t) for t in texts])) for texts in some if texts), default=0)
    for mine, texts in zip((True, False), some, strict=True):
        for text in texts:
            key = crc32(text.tobytes())
            words.add_single(key, key, map(str, set(text[-length:].tolist())), mine)
    return words.kinds()


def some_of(n: int) -> list[int]:
    """`OF_EITHER` places from all over n, or all of them."""
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(OF_EITHER, n)).astype(int))]


def _enough(keys: np.ndarray) -> bool:
    return len(keys) >= FEWEST and len(np.unique(keys)) >= PARTS


def _right(score: np.ndarray) -> np.ndarray:
    """1 where a score agrees with its label, 0.5 where it is none."""
    return np.asarray((1 + np.sign(np.round(score, 9))) / 2)


def _told(rows: csr_array, keys: np.ndarray) -> Estimate:
    """How often words that were fitted to the parts before tell the preferred answer of a part."""
    part, right = folds_by_prompt(keys, PARTS, 0), np.zeros(len(keys))
    for i in range(1, PARTS):
        right[part == i] = _right(rows[part == i] @ _fitted(rows[part < i]))
    return clustered_mean(right[part > 0], keys[part > 0], share=True)


def _compared(rows: csr_array, keys: np.ndarray, part_N: np.ndarray) -> tuple[Estimate, Callable[[], Estimate]] | None:
    if not _enough(keys[~part_N]):
        return None
    score = rows @ _fitted(rows[~part_N])
    inside, outside = (float(np.median(np.abs(score[of]))) for of in (part_N, ~part_N))
    if inside < SPOKEN * outside:
        return None
    told = clustered_mean(_right(score[part_N]), keys[part_N], share=True)
    return told, lambda: _told(rows[~part_N], keys[~part_N])


def _fitted(pairs: csr_array, counted: np.ndarray | None = None) -> np.ndarray:
    """Weights of columns that make each row's score positive: mean of log(1 + exp(-score)) and a ridge. counted: how
    much each row weighs in the mean."""
    from scipy.optimize import minimize
    from scipy.special import expit

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        score = pairs @ weights
        value = float(share @ np.logaddexp(0, -score)) + RIDGE / 2 * float(weights @ weights)
        return value, RIDGE * weights - pairs.T @ (share * expit(-score))

    share = np.full(pairs.shape[0], 1 / pairs.shape[0]) if counted is None else counted / counted.sum()
    start = np.zeros(pairs.shape[1])
    weights: np.ndarray = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    return weights
