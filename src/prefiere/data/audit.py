"""What is wrong with this data, before a GPU is touched; and how to hold some of it out honestly.

Works on records as `formats.read` gives them, in one pass that keeps hashes and lengths, not texts.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from prefiere.asked.language import in_words
from prefiere.asked.words.account import said_reason
from prefiere.data.convert import AnyRecord, check_content
from prefiere.data.schema import Comparison, Demonstration, Judgement, PreferencePair, Text
from prefiere.data.values import BadRow
from prefiere.stats import wilson

_SHOWN = 5  # examples named for each finding


# -- keys and lengths -------------------------------------------------------------------------------------------------


def _hash(data: str) -> int:
    """int64 hash of a string, equal on every machine and in every process."""
    return int.from_bytes(blake2b(data.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True)


def _flat(text: Text) -> str:
    """One string for a text, different where roles or the cut between turns differ."""
    return text if isinstance(text, str) else "".join(f"\x1e{m.role}\x1f{m.content}\x1f{dict(m.extra)}" for m in text)


def prompt_key(prompt: Text) -> int:
    """int64 key of a prompt. Prompts that differ in letter case or white space only have the same one."""
    return _hash(" ".join(_flat(prompt).casefold().split()))


def text_length(text: Text) -> int:
    """Characters, without roles."""
    return len(text) if isinstance(text, str) else sum(len(m.content) for m in text)


# -- the findings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CountedShare:
    """``count`` of ``n``, with the 95% Wilson interval; ``value`` is nan where n is 0."""

    count: int
    n: int
    value: float
    low: float
    high: float


def share(count: int, n: int) -> CountedShare:
    """``count`` of ``n`` with `prefiere.stats.wilson`'s interval; 0 to 1 without a trial."""
    if n == 0:
        return CountedShare(0, 0, math.nan, 0.0, 1.0)
    low, high = wilson(count, n)
    return CountedShare(count, n, count / n, low if count else 0.0, high if count < n else 1.0)  # without the rounding


@dataclass(frozen=True, slots=True)
class Lengths:
    """Characters: mean and quantiles."""

    mean: float
    median: float
    p90: float
    max: int


def _lengths(values: Sequence[int]) -> Lengths | None:
    if not len(values):
        return None
    a = np.asarray(values)
    return Lengths(float(a.mean()), float(np.median(a)), float(np.quantile(a, 0.9)), int(a.max()))


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found in some records.

    ``duplicates`` repeat an earlier record (same prompt and answers, same verdict). ``contradictions`` are answers
    preferred both ways round (or called both good and bad), each counted once. ``ties`` includes both bad. ``unusable``
    counts records with an empty prompt or answer, or equal answers, by reason. ``longer_preferred`` and
    ``shorter_preferred`` are shares of the pairs that are no ties and whose answers differ in length: what counting
    characters alone would get right. ``in_both`` counts records whose prompt is also in the other data, None where
    there was none. ``examples`` names the first sources of each finding.
    """

    records: int
    prompts: int
    duplicates: int
    contradictions: int
    ties: int
    unusable: dict[str, int]
    prompt_lengths: Lengths | None
    chosen_lengths: Lengths | None
    rejected_lengths: Lengths | None
    longer_preferred: CountedShare | None
    shorter_preferred: CountedShare | None
    in_both: int | None
    examples: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """For data.json."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The findings in plain language, one line each."""
        prompts = in_words("account.distinct", n=f"{self.prompts:,}")
        said = [in_words("account.prompts", n=f"{self.records:,}", prompts=prompts)]
        counts = {"repeated": self.duplicates, "both_ways": self.contradictions, "ties": self.ties}
        said += [in_words(f"account.{what}", n=f"{n:,}") for what, n in counts.items() if n]
        said += [f"{said_reason(why)}: {n:,}" for why, n in self.unusable.items()]
        said += [in_words("account.in_both", n=f"{self.in_both:,}")] if self.in_both else []
        if self.shorter_preferred and self.shorter_preferred.n:
            s = self.shorter_preferred
            shares = {"share": f"{s.value:.1%}", "low": f"{s.low:.1%}", "high": f"{s.high:.1%}"}
            said.append(in_words("account.shorter", n=f"{s.n:,}", **shares))
        return said


@dataclass
class _Tally:
    """What one pass collects."""

    prompts: set[int] = field(default_factory=set)
    seen: dict[int, int] = field(default_factory=dict)  # answers -> verdicts so far, as bits
    duplicates: int = 0
    contradictions: int = 0
    ties: int = 0
    unusable: dict[str, int] = field(default_factory=dict)
    lengths: tuple[array[int], array[int], array[int]] = field(
        default_factory=lambda: (array("q"), array("q"), array("q"))
    )
    decided: tuple[array[int], array[int]] = field(default_factory=lambda: (array("q"), array("q")))
    examples: dict[str, list[str]] = field(default_factory=dict)

    def example(self, what: str, source: str) -> None:
        named = self.examples.setdefault(what, [])
        if len(named) < _SHOWN:
            named.append(source)


class Auditor:
    """Looks through records of one kind as they pass. ``against``: other data whose prompts should not be here."""

    def __init__(self, against: Iterable[AnyRecord] | None = None):
        self._tally, self._records, self._overlap = _Tally(), 0, 0
        self._others = None if against is None else {prompt_key(r.prompt) for r in against}

    def add(self, record: AnyRecord) -> None:
        """Count what a record shows."""
        self._records += 1
        key = prompt_key(record.prompt)
        self._tally.prompts.add(key)
        if self._others is not None and key in self._others:
            self._overlap += 1
            self._tally.example("in_both", record.source)
        _count(self._tally, record)

    def found(self) -> Audit:
        """What they showed."""
        return _found(self._tally, self._records, None if self._others is None else self._overlap)


def audit(records: Iterable[AnyRecord], against: Iterable[AnyRecord] | None = None) -> Audit:
    """Look through records of one kind. ``against`` is other data (to evaluate on) whose prompts should not be here."""
    auditor = Auditor(against)
    for record in records:
        auditor.add(record)
    return auditor.found()


def _found(t: _Tally, records: int, in_both: int | None) -> Audit:
    shorter, longer = _by_length(t)
    return Audit(
        records=records,
        prompts=len(t.prompts),
        duplicates=t.duplicates,
        contradictions=t.contradictions,
        ties=t.ties,
        unusable=t.unusable,
        prompt_lengths=_lengths(t.lengths[0]),
        chosen_lengths=_lengths(t.lengths[1]),
        rejected_lengths=_lengths(t.lengths[2]),
        longer_preferred=longer,
        shorter_preferred=shorter,
        in_both=in_both,
        examples=t.examples,
    )


def _answers(record: AnyRecord) -> tuple[Text | None, Text | None, float]:
    """The preferred answer, the other, and the probability that the first is preferred."""
    if isinstance(record, PreferencePair):
        return record.chosen, record.rejected, record.label
    if isinstance(record, Comparison):
        a, b = record.answer_a, record.answer_b
        return (b, a, 1.0) if record.preference == "b" else (a, b, 1.0 if record.preference == "a" else 0.5)
    if isinstance(record, Judgement | Demonstration):
        good = not isinstance(record, Judgement) or record.desirable
        return record.completion, None, float(good)
    return None, None, 1.0


def _count(t: _Tally, record: AnyRecord) -> None:
    first, second, label = _answers(record)
    try:
        check_content(record)
    except BadRow as bad:
        t.unusable[bad.reason] = t.unusable.get(bad.reason, 0) + 1
        t.example(bad.reason, record.source)
    t.lengths[0].append(text_length(record.prompt))
    for values, answer in zip(t.lengths[1:], (first, second), strict=True):
        if answer is not None:
            values.append(text_length(answer))
    if first is not None and second is not None:
        if label == 0.5:
            t.ties += 1
        else:
            likelier, other = (first, second) if label > 0.5 else (second, first)
            t.decided[0].append(text_length(likelier))
            t.decided[1].append(text_length(other))
    _repeats(t, record)


def pair_key(record: AnyRecord) -> tuple[int, int]:
    """What a record compares (its prompt and answers, in either order), and its verdict: 1 where the first of the two
    in their order is preferred (or the answer good), 2 the other (or bad), 4 a tie."""
    first, second, label = _answers(record)
    a, b = ("" if answer is None else _flat(answer) for answer in (first, second))
    turned = a > b and second is not None
    key = _hash("\x1d".join([_flat(record.prompt), *((b, a) if turned else (a, b))]))
    return key, 4 if label == 0.5 else 2 if (label < 0.5) != turned else 1


def _repeats(t: _Tally, record: AnyRecord) -> None:
    """Duplicates and contradictions: the same prompt and answers in either order, and their verdicts so far."""
    key, verdict = pair_key(record)
    before = t.seen.get(key, 0)
    t.seen[key] = before | verdict
    if before & verdict:
        t.duplicates += 1
        t.example("duplicates", record.source)
    elif verdict != 4 and before & 3:
        t.contradictions += 1
        t.example("contradictions", record.source)


def _by_length(t: _Tally) -> tuple[CountedShare | None, CountedShare | None]:
    good, bad = np.asarray(t.decided[0]), np.asarray(t.decided[1])
    if not len(good):
        return None, None
    shorter, longer = int((good < bad).sum()), int((good > bad).sum())
    return share(shorter, shorter + longer), share(longer, shorter + longer)


# -- holding out by prompt --------------------------------------------------------------------------------------------


def _keys(items: Iterable[AnyRecord] | np.ndarray) -> np.ndarray:
    if isinstance(items, np.ndarray):
        return items.astype(np.int64, copy=False)
    return np.fromiter((prompt_key(r.prompt) for r in items), np.int64)


def _shuffled_prompts(keys: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each record the place of its prompt in an order that depends on keys and seed only; and records per place."""
    unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    ranks = np.argsort([_hash(f"{seed}:{k}") for k in unique.tolist()], kind="stable")
    place = np.empty(len(unique), np.int64)
    place[ranks] = np.arange(len(unique))
    return place[inverse], counts[ranks]


def split_by_prompt(
    items: Iterable[AnyRecord] | np.ndarray, held_out: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, held out), each ascending, with no prompt on both sides.

    items: records, or int64 keys of their prompts [n] (equal prompts, equal keys). held_out: how many records at least
    (1 or more), or which fraction (below 1). Prompts are taken in the order of a hash of (seed, prompt), so the order
    of the records does not matter, and more data moves few of them. One prompt at least stays for training: of data
    with a single prompt nothing is held out. Raises ValueError at a negative size.
    """
    if held_out < 0:
        raise ValueError(f"cannot hold out {held_out} examples")
    keys = _keys(items)
    place, counts = _shuffled_prompts(keys, seed)
    wanted = math.ceil(held_out * len(keys)) if held_out < 1 else int(held_out)
    reached = int(np.searchsorted(np.cumsum(counts), wanted)) + 1 if wanted else 0
    out = place < max(0, min(reached, len(counts) - 1))
    return np.flatnonzero(~out), np.flatnonzero(out)


def folds_by_prompt(items: Iterable[AnyRecord] | np.ndarray, k: int, seed: int) -> np.ndarray:
    """The fold 0..k-1 of each record [n]: all records of a prompt in one fold, each prompt in the fold that is
    smallest so far. No fold is empty.

    Raises ValueError where there are fewer prompts than folds.
    """
    place, counts = _shuffled_prompts(_keys(items), seed)
    if k < 1 or len(counts) < k:
        raise ValueError(f"{len(counts)} different prompts cannot make {k} folds")
    smallest = [(0, fold) for fold in range(k)]
    fold_of = np.empty(len(counts), np.int64)
    for i, n in enumerate(counts.tolist()):
        size, fold = heapq.heappop(smallest)
        heapq.heappush(smallest, (size + n, fold))
        fold_of[i] = fold
    return fold_of[place]
