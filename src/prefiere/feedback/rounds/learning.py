"""What the votes of a store teach a small model of their answers: what to ask next, and whether more would help.

The learning curve rests on votes in random order alone, since every other order biases it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import sqlalchemy as sa

from prefiere.asked.language import count_of
from prefiere.data.schema import Text, question
from prefiere.feedback.schema import answer, pair, prompt, text_of
from prefiere.feedback.science.active import FIRST_RANDOM, Brought, Stopping, principal, priorities, stopping
from prefiere.feedback.science.ranking import logistic
from prefiere.feedback.science.text import scaled, text_features
from prefiere.feedback.store import Store
from prefiere.feedback.votes import Vote, in_force
from prefiere.stats import clustered_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Features:
    """How answers become numbers: ``read`` takes n (prompt, answer) and gives [n, D], alike in every call.

    width: how many directions of largest variance are kept, or None for all.
    """

    name: str
    read: Callable[[Sequence[tuple[Text, Text]]], np.ndarray]
    width: int | None = None

    def __call__(self, differences: np.ndarray) -> np.ndarray:
        """[n, D] -> [n, d]: differences of features, as the small model takes them."""
        x = scaled(differences)
        return x if self.width is None else principal(x, self.width)


def _by_words(said: Sequence[tuple[Text, Text]]) -> np.ndarray:
    return text_features([question(answer) for _, answer in said])


BY_WORDS = Features("text", _by_words)
"""Hashed words of the answers: without a model, and the same in every process."""
HIDDEN_WIDTH = 64
"""Directions kept of a model's hidden states."""
RIDGE = 10.0
_FOLDS, _BLOCK = 5, 50  # the curve is drawn anew every so many votes
_CHUNK, _MOST = 200, 1000  # priorities written at once, and at most: nobody needs an order of more
_FEWEST = 100  # votes below which no curve is drawn


@dataclass
class _Kept(Generic[T]):
    """The last figure, and what it was drawn from: the board asks every few seconds."""

    key: object = None
    found: T | None = None

    def of(self, key: object, draw: Callable[[], T]) -> T:
        """The figure of this key, drawn anew where the last one was of another."""
        if self.found is None or self.key != key:
            self.found, self.key = draw(), key
        return self.found


_curve: _Kept[Stopping] = _Kept()
_order: _Kept[Brought] = _Kept()


def _told(votes: Sequence[Vote], random: bool) -> list[Vote]:
    """Decided votes of people on what was asked to learn from, in random order or in the active one."""
    return [v for v in votes if v.random is random and not v.judge and v.purpose == "ask" and v.side in ("a", "b")]


def _blocks(votes: list[Vote]) -> list[Vote]:
    return votes[: len(votes) - len(votes) % _BLOCK]


def _key(*parts: Sequence[Vote]) -> object:
    return tuple(tuple((v.event_id, v.pair_id, v.score) for v in votes) for votes in parts)


def curve_votes(votes: Sequence[Vote]) -> list[Vote]:
    """The votes that a learning curve may rest on."""
    return _told(votes, random=True)


def curve(c: sa.Connection, votes: Sequence[Vote], threshold: float = 0.01, features: Features = BY_WORDS) -> Stopping:
    """Whether these people's votes would gain from twice their number: see `science.active.stopping`.

    Decided votes in random order count, in the order in which they were given. The check before is that of the first
    four fifths of them.
    """
    used = curve_votes(votes)
    if len(used) < _FEWEST:
        return Stopping("too_early", float("nan"), float("nan"), float("nan"), len(used))
    used = _blocks(used)

    def draw() -> Stopping:
        x = _differences(paired_answers(c, sorted({v.pair_id for v in used})), features)
        before = _check(features, x, used[: len(used) * 4 // 5], threshold, None)
        return _check(features, x, used, threshold, before)

    return _curve.of((threshold, features.name, _key(used)), draw)


def _check(
    features: Features, x: dict[int, np.ndarray], used: Sequence[Vote], threshold: float, before: Stopping | None
) -> Stopping:
    prompts = [v.prompt_id for v in used]
    first = np.array([float(v.score < 0) for v in used])
    right = out_of_fold(features(np.stack([x[v.pair_id] for v in used])), first, prompts)
    return stopping(right[0], right[1], prompts, threshold=threshold, before=before)


def out_of_fold(x: np.ndarray, first: np.ndarray, prompts: Sequence[int], seed: int = 0) -> np.ndarray:
    """float [2, n]: 1 where a prediction is right that has seen no vote on the same prompt, of all others and of half.

    x [n, d]: features of the first answer less those of the second; first [n]: 1 where the first was preferred.
    """
    rng = np.random.default_rng(seed)
    known = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
    of_prompt = rng.permutation(len(known)) % _FOLDS
    fold = of_prompt[[known[p] for p in prompts]]
    half = rng.permutation(len(x)) % 2 == 0
    right = np.zeros((2, len(x)))
    for k in range(_FOLDS):
        held = fold == k
        for row, learnt in enumerate((~held, ~held & half)):
            theta, _ = logistic(x[learnt], first[learnt], RIDGE)
            right[row, held] = (x[held] @ theta > 0) == (first[held] > 0.5)
    return right


def brought(c: sa.Connection, votes: Sequence[Vote]) -> Brought | None:
    """What the active order brought on the votes in random order; None where either kind has too few votes."""
    random, ordered = _blocks(_told(votes, random=True)), _blocks(_told(votes, random=False))
    if len(random) < _FEWEST or len(ordered) < _BLOCK:
        return None

    def draw() -> Brought:
        both = random + ordered
        x = _differences(paired_answers(c, sorted({v.pair_id for v in both})), BY_WORDS)
        first = np.array([float(v.score < 0) for v in both])
        prompts = [v.prompt_id for v in both]
        gain = gain_of_order(BY_WORDS(np.stack([x[v.pair_id] for v in both])), first, prompts, len(random))
        e = clustered_mean(gain, prompts[: len(random)], share=False)
        return Brought(e.mean, e.low, e.high, len(ordered), len(random))

    return _order.of(_key(random, ordered), draw)


def gain_of_order(x: np.ndarray, first: np.ndarray, prompts: Sequence[int], n: int, seed: int = 0) -> np.ndarray:
    """float [n]: 1, 0 or -1 for each vote in random order: whether a learner half of whose votes came in the active
    order predicts it rightly, less whether one does that has as many votes in random order.

    x [n + m, d], first [n + m], prompts [n + m]: as for `out_of_fold`, the n votes in random order first. Neither
    learner has seen a vote on the same prompt.
    """
    rng = np.random.default_rng(seed)
    known = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
    fold = (rng.permutation(len(known)) % _FOLDS)[[known[p] for p in prompts]]
    shuffled = rng.permutation(n)
    gain = np.zeros(n)
    for k in range(_FOLDS):
        held = np.flatnonzero(fold[:n] == k)
        random = shuffled[fold[shuffled] != k]
        ordered = n + rng.permutation(np.flatnonzero(fold[n:] != k))
        changed = min(len(ordered), len(random) // 2)
        for sign, learnt in ((1, np.concatenate([random[changed:], ordered[:changed]])), (-1, random)):
            theta, _ = logistic(x[learnt], first[learnt], RIDGE)
            gain[held] += sign * ((x[held] @ theta > 0) == (first[held] > 0.5))
    return gain


def brought_sentence(found: Brought) -> str:
    """What the active order brought, for people."""
    points = f"{100 * found.gain:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    said = points if found.measurable else f"nothing measurable, {points}"
    return (
        f"asking in an order of its own brought {said}, on {count_of(found.random, 'vote')} in random order, "
        f"with {found.ordered:,} in the other"
    )


def sentence(found: Stopping) -> str:
    """What a learning curve says, for people."""
    if found.gain != found.gain:
        return (
            f"stop? too early to tell: {count_of(found.votes, 'decided vote')} in random order, a curve takes {_FEWEST}"
        )
    what = (
        f"twice the votes would gain {100 * found.gain:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )
    said = {"stop": "you can stop", "go_on": "go on", "too_early": "too early to tell"}[found.said]
    return f"stop? {said}: {what}, from {count_of(found.votes, 'vote')} in random order"


def prioritise(store: Store, features: Features = BY_WORDS) -> int:
    """Order the pairs that are open by what a vote on each would tell. Returns how many were scored.

    Greedy D-optimal design on the answers (`science.active.priorities`), once FIRST_RANDOM pairs have votes of people.
    A fifth of all questions stays random: see `leases.RANDOM`. On real labels no order has beaten a random one.
    """
    with store.read() as c:
        votes = [v for v in in_force(c) if not v.judge and v.purpose == "ask" and not v.both_bad]
        free = sa.select(pair.c.id).where(pair.c.purpose == "ask", pair.c.open > 0)
        opened = list(c.execute(free.order_by(pair.c.id)).scalars())
        said: dict[int, list[float]] = {}
        for v in votes:
            said.setdefault(v.pair_id, []).append({"a": 1.0, "b": 0.0}.get(v.side, 0.5))
        if len(said) < FIRST_RANDOM:
            return 0
        pairs = sorted({*opened, *said})
        answers = paired_answers(c, pairs)
    x = _differences(answers, features)  # outside: a database ends a transaction that waits for a model
    at = {p: i for i, p in enumerate(pairs)}
    known = [at[p] for p in said]
    design = principal(scaled(np.stack([x[p] for p in pairs])), features.width or 32)
    right = [float(np.mean(s)) for s in said.values()]
    order = priorities(design, known, right, min(_MOST, len(opened)))
    best = {pairs[i]: float(len(order) - n) for n, i in enumerate(order)}
    _write(store, {p: best.get(p, 0.0) for p in opened}, f"{features.name}-d-optimal-1")
    return len(best)


def _write(store: Store, scores: dict[int, float], scored_by: str) -> None:
    """In chunks, so that somebody who votes waits for one chunk only."""
    rows = [{"p": p, "value": value} for p, value in scores.items()]
    change = sa.update(pair).where(pair.c.id == sa.bindparam("p"))
    change = change.values(priority=sa.bindparam("value"), scored_by=scored_by)
    for start in range(0, len(rows), _CHUNK):
        with store.write() as c:
            c.execute(change, rows[start : start + _CHUNK])


@dataclass(frozen=True)
class PairedAnswers:
    """Pairs' two answers. sides: the answers' ids, by pair. said: prompt and answer, by the answer's id."""

    sides: dict[int, tuple[int, int]]
    said: dict[int, tuple[Text, Text]]


def paired_answers(c: sa.Connection, pairs: Sequence[int]) -> PairedAnswers:
    """What is compared in these pairs."""
    wanted = set(pairs)
    sides = {
        r.id: (r.a_id, r.b_id) for r in c.execute(sa.select(pair.c.id, pair.c.a_id, pair.c.b_id)) if r.id in wanted
    }
    needed = {side for both in sides.values() for side in both}
    columns = sa.select(answer.c.id, answer.c.content, prompt.c.content.label("asked"))
    joined = columns.join(prompt, prompt.c.id == answer.c.prompt_id)
    said = {r.id: (text_of(r.asked), text_of(r.content)) for r in c.execute(joined) if r.id in needed}
    return PairedAnswers(sides, said)


def _differences(answers: PairedAnswers, features: Features) -> dict[int, np.ndarray]:
    """Of each pair: the features of answer a less those of answer b."""
    numbers = dict(zip(answers.said, features.read(list(answers.said.values())), strict=True))
    return {p: numbers[a] - numbers[b] for p, (a, b) in answers.sides.items()}
