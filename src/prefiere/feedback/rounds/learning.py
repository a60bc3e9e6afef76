"""What the votes of a store teach a small model of their texts: what to ask next, and whether more would help.

The learning curve rests on votes in random order alone, since every other order biases it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from prefiere.data.schema import question
from prefiere.feedback.schema import answer, pair, text_of
from prefiere.feedback.science.active import FIRST_RANDOM, Stopping, principal, priorities, stopping
from prefiere.feedback.science.ranking import logistic
from prefiere.feedback.science.text import scaled, text_features
from prefiere.feedback.store import Store
from prefiere.feedback.votes import Vote, in_force

SCORED_BY = "text-d-optimal-1"
RIDGE = 10.0
_FOLDS, _BLOCK = 5, 50  # the curve is drawn anew every so many votes
_CHUNK, _MOST = 200, 1000  # priorities written at once, and at most: nobody needs an order of more
_FEWEST = 100  # votes below which no curve is drawn


@dataclass
class _Kept:
    """The last curve, and what it was drawn from: the board asks every few seconds."""

    key: object = None
    found: Stopping | None = None


_kept = _Kept()


def curve(c: sa.Connection, votes: Sequence[Vote], threshold: float = 0.01) -> Stopping:
    """Whether these people's votes would gain from twice their number: see `science.active.stopping`.

    Decided votes in random order count, in the order in which they were given. The check before is that of the first
    four fifths of them.
    """
    used = [v for v in votes if v.random and not v.judge and v.purpose == "ask" and v.side in ("a", "b")]
    nothing = Stopping("too_early", float("nan"), float("nan"), float("nan"), len(used))
    used = used[: len(used) - len(used) % _BLOCK]
    if len(used) < _FEWEST:
        return nothing
    key = (threshold, tuple((v.event_id, v.pair_id, v.score) for v in used))
    if _kept.key != key:
        x = _differences(c, sorted({v.pair_id for v in used}))
        before = _check(x, used[: len(used) * 4 // 5], threshold, None)
        _kept.found = _check(x, used, threshold, before)
        _kept.key = key
    assert _kept.found is not None
    return _kept.found


def _check(x: dict[int, np.ndarray], used: Sequence[Vote], threshold: float, before: Stopping | None) -> Stopping:
    prompts = [v.prompt_id for v in used]
    right = out_of_fold(scaled(np.stack([x[v.pair_id] for v in used])), np.array([float(v.score < 0) for v in used]),
                        prompts)  # fmt: skip
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


def sentence(found: Stopping) -> str:
    """What a learning curve says, for people."""
    if found.gain != found.gain:
        return f"stop? too early to tell: {found.votes:,} decided votes in random order, a curve takes {_FEWEST}"
    what = (
        f"twice the votes would gain {100 * found.gain:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )
    said = {"stop": "you can stop", "go_on": "go on", "too_early": "too early to tell"}[found.said]
    return f"stop? {said}: {what}, from {found.votes:,} votes in random order"


def prioritise(store: Store) -> int:
    """Order the pairs that are open by what a vote on each would tell. Returns how many were scored.

    Greedy D-optimal design on the texts (`science.active.priorities`), once FIRST_RANDOM pairs have votes of people. A
    fifth of all questions stays random: see `leases.RANDOM`. On real labels no order has beaten a random one.
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
        x = _differences(c, pairs)
    at = {p: i for i, p in enumerate(pairs)}
    known = [at[p] for p in said]
    order = priorities(principal(scaled(np.stack([x[p] for p in pairs]))), known,
                       [float(np.mean(s)) for s in said.values()], min(_MOST, len(opened)))  # fmt: skip
    best = {pairs[i]: float(len(order) - n) for n, i in enumerate(order)}
    _write(store, {p: best.get(p, 0.0) for p in opened})
    return len(best)


def _write(store: Store, scores: dict[int, float]) -> None:
    """In chunks, so that somebody who votes waits for one chunk only."""
    rows = [{"p": p, "value": value} for p, value in scores.items()]
    change = sa.update(pair).where(pair.c.id == sa.bindparam("p"))
    change = change.values(priority=sa.bindparam("value"), scored_by=SCORED_BY)
    for start in range(0, len(rows), _CHUNK):
        with store.write() as c:
            c.execute(change, rows[start : start + _CHUNK])


def _differences(c: sa.Connection, pairs: Sequence[int]) -> dict[int, np.ndarray]:
    """Of each pair: the features of answer a less those of answer b."""
    wanted = set(pairs)
    sides = {
        r.id: (r.a_id, r.b_id) for r in c.execute(sa.select(pair.c.id, pair.c.a_id, pair.c.b_id)) if r.id in wanted
    }
    needed = {side for both in sides.values() for side in both}
    texts = {r.id: question(text_of(r.content)) for r in c.execute(sa.select(answer.c.id, answer.c.content))
             if r.id in needed}  # fmt: skip
    features = dict(zip(texts, text_features(list(texts.values())), strict=True))
    return {p: features[a] - features[b] for p, (a, b) in sides.items()}
