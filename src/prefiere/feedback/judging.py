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
from prefiere.feedback.schema import answer, event, lease, pair, prompt, text_of
from prefiere.feedback.store import Store

_CHUNK = 64


class JudgeScores(Protocol):
    """Anything that scores completions, higher is better."""

    def __call__(self, prompts: Sequence[Text], completions: Sequence[str]) -> np.ndarray:
        """float64 [n]: the score of each completion of its prompt."""


def vote_all(
    store: Store,
    name: str,
    judge: JudgeScores,
    *,
    limit: int | None = None,
    round_id: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> int:
    """Let a judge vote on up to ``limit`` pairs that it has not had, those that people did too first. Returns how many.

    round_id: on the pairs of one round only. A judge takes no slot from people. Equal scores are a tie; scores say
    which answer is better and not by how much, so every other vote has the middling strength.
    """
    with store.write() as c:
        judge_id = people.find_or_add(c, name, "judge")
    with store.read() as c:
        waiting = _unjudged(c, judge_id, limit, round_id)
    done = 0
    for start in range(0, len(waiting), _CHUNK):
        chunk = waiting[start : start + _CHUNK]
        asked = [text for _, text, _, _ in chunk for _ in range(2)]
        scores = judge(asked, [side for _, _, a, b in chunk for side in (a, b)])
        now = time.time()
        with store.write() as c:
            for n, (pair_id, *_) in enumerate(chunk):
                better = int(np.sign(scores[2 * n + 1] - scores[2 * n]))
                lease_id = secrets.token_hex(16)
                c.execute(
                    sa.insert(lease).values(
                        id=lease_id, pair_id=pair_id, person_id=judge_id, swapped=False, random=True, issued=now,
                        expires=now, state="done",
                    )
                )  # fmt: skip
                c.execute(sa.update(pair).where(pair.c.id == pair_id).values(overlap=pair.c.overlap + 1))
                items.insert(
                    c,
                    event,
                    lease_id=lease_id,
                    seq=0,
                    kind="vote",
                    score=2 * better,
                    both_bad=False,
                    input="api",
                    at=now,
                )
        done += len(chunk)
        progress(len(chunk))
    return done


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
