"""A judge that votes like a person of kind judge: whatever scores answers prefers the one with the higher score."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import sqlalchemy as sa

from prefiere.data.schema import Message, Text
from prefiere.feedback import items, people
from prefiere.feedback.schema import Side, answer, event, lease, pair, prompt, text_of
from prefiere.feedback.store import Store


class JudgeScores(Protocol):
    """Anything that scores completions, higher is better."""

    def __call__(self, prompts: Sequence[Text], completions: Sequence[str]) -> np.ndarray:
        """float64 [n]: the score of each completion of its prompt."""


class Compares(Protocol):
    """Anything that says which of two answers is better."""

    def __call__(self, prompts: Sequence[Text], pairs: Sequence[tuple[str, str]]) -> list[Side | None]:
        """n verdicts on n prompts with two answers each; None where there is none."""


def by_scores(judge: JudgeScores) -> Compares:
    """A comparison by scores: the higher one is better, equal scores are a tie."""

    def compare(prompts: Sequence[Text], pairs: Sequence[tuple[str, str]]) -> list[Side | None]:
        scores = np.asarray(judge([p for p in prompts for _ in range(2)], [side for pair in pairs for side in pair]))
        return ["b" if b > a else "a" if a > b else "tie" for a, b in scores.reshape(-1, 2).tolist()]

    return compare


def vote_by(
    store: Store,
    name: str,
    compare: Compares,
    *,
    limit: int | None = None,
    round_id: int | None = None,
    at_once: int = 64,
    progress: Callable[[int], None] = lambda n: None,
) -> int:
    """Let a judge vote on up to ``limit`` pairs that it has not had, those that people did too first. Returns how many.

    round_id: on the pairs of one round only. at_once: pairs between two writes, which a judge that fails loses at most.
    A judge takes no slot from people. It says which answer is better and not by how much, so every vote for one has the
    middling strength. Where it gives no verdict there is no vote, and it may be asked again.
    """
    with store.write() as c:
        judge_id = people.find_or_add(c, name, "judge")
    with store.read() as c:
        waiting = _unjudged(c, judge_id, limit, round_id)
    done = 0
    for start in range(0, len(waiting), at_once):
        chunk = waiting[start : start + at_once]
        verdicts = compare([text for _, text, _, _ in chunk], [(a, b) for _, _, a, b in chunk])
        with store.write() as c:
            for (pair_id, *_), verdict in zip(chunk, verdicts, strict=True):
                if verdict is not None:
                    _record(c, judge_id, pair_id, verdict)
                    done += 1
        progress(len(chunk))
    return done


def _record(c: sa.Connection, judge_id: int, pair_id: int, verdict: Side) -> None:
    now, lease_id = time.time(), secrets.token_hex(16)
    c.execute(
        sa.insert(lease).values(
            id=lease_id, pair_id=pair_id, person_id=judge_id, swapped=False, random=True, issued=now, expires=now,
            state="done",
        )
    )  # fmt: skip
    c.execute(sa.update(pair).where(pair.c.id == pair_id).values(overlap=pair.c.overlap + 1))
    score = {"a": -2, "b": 2, "tie": 0, "bad": None}[verdict]
    items.insert(
        c, event, lease_id=lease_id, seq=0, kind="vote", score=score, both_bad=verdict == "bad", input="api", at=now
    )  # fmt: skip


def _unjudged(
    c: sa.Connection, judge_id: int, limit: int | None, round_id: int | None
) -> list[tuple[int, Text, str, str]]:
    """Pairs that this judge has not had: id, prompt, and both answers as text."""
    had = sa.select(lease.c.id).where(lease.c.pair_id == pair.c.id, lease.c.person_id == judge_id)
    common = sa.select(lease.c.id).where(lease.c.pair_id == pair.c.id, lease.c.state == "done")
    a, b = answer.alias(), answer.alias()
    rows = c.execute(
        sa.select(pair.c.id, prompt.c.content, a.c.content, b.c.content)
        .join(prompt, prompt.c.id == pair.c.prompt_id)
        .join(a, a.c.id == pair.c.a_id)
        .join(b, b.c.id == pair.c.b_id)
        .where(~sa.exists(had), sa.true() if round_id is None else pair.c.round_id == round_id)
        .order_by(sa.case((sa.exists(common), 0), else_=1), pair.c.draw)
        .limit(limit)
    )
    return [(r[0], text_of(r[1]), _plain(text_of(r[2])), _plain(text_of(r[3]))) for r in rows]


def _plain(text: Text) -> str:
    last: str | Message = text if isinstance(text, str) else text[-1]
    return last if isinstance(last, str) else last.content
