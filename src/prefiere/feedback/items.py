"""What is asked about: prompts, models, answers and pairs of answers, each stored once however often it is added."""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefiere.data.schema import Text
from prefiere.feedback import schema
from prefiere.feedback.schema import Purpose, Side

DOUBLED = 0.12
"""The share of pairs that a second person sees: at a fixed number of questions, within a point of the best."""


def digest(value: Any) -> str:
    """A SHA-256 of any JSON value, the same in every store."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


def add_prompt(c: sa.Connection, content: Text, tools: tuple[Any, ...] = (), source: str | None = None) -> int:
    """The id of this prompt, added if it is new. Raises ValueError for a prompt without text."""
    plain = schema.plain(content)
    if not _says_something(plain):
        raise ValueError(f"{source or 'a prompt'}: a prompt without text. Leave it out.")
    tools_plain = [dict(t) for t in tools]
    key = digest([plain, tools_plain])
    found = c.execute(sa.select(schema.prompt.c.id).where(schema.prompt.c.digest == key)).scalar()
    return found or insert(c, schema.prompt, content=plain, tools=tools_plain, digest=key, source=source)


def add_model(
    c: sa.Connection, label: str, path: str, fingerprint: str, run: str | None = None, step: int | None = None,
    round_id: int | None = None,
) -> int:  # fmt: skip
    """The id of the model with this fingerprint, added if it is new. round_id: the round that made it."""
    found = c.execute(sa.select(schema.model.c.id).where(schema.model.c.fingerprint == fingerprint)).scalar()
    made = {"label": label, "path": path, "fingerprint": fingerprint, "run": run, "step": step, "round_id": round_id}
    return found or insert(c, schema.model, **made)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How an answer was sampled: what makes it the same answer when it is sampled again."""

    model_id: int
    seed: int
    sample: int
    temperature: float
    top_p: float
    max_new_tokens: int


def add_answer(
    c: sa.Connection, prompt_id: int, content: Text, drawn: Drawn | None = None, author_id: int | None = None
) -> int:
    """The id of this answer: one for each (prompt, model, seed, sample); from elsewhere, one for each text."""
    t, plain = schema.answer, schema.plain(content)
    key = digest(plain)
    same = sa.select(t.c.id).where(t.c.prompt_id == prompt_id)
    if drawn:
        same = same.where(t.c.model_id == drawn.model_id, t.c.seed == drawn.seed, t.c.sample == drawn.sample)
    else:
        same = same.where(t.c.digest == key, t.c.model_id.is_(None), t.c.author_id.is_not_distinct_from(author_id))
    found = c.execute(same).scalar()
    how = {k: getattr(drawn, k) for k in Drawn.__dataclass_fields__} if drawn else {}
    return found or insert(c, t, prompt_id=prompt_id, content=plain, digest=key, author_id=author_id, **how)


def add_pair(
    c: sa.Connection,
    prompt_id: int,
    a_id: int,
    b_id: int,
    *,
    purpose: Purpose = "ask",
    overlap: int | None = None,
    round_id: int | None = None,
    rng: random.Random,
) -> int | None:
    """The id of a new pair, or None where it is there already, or where both answers say the same.

    ``overlap`` is how many people are asked; without it one, and two for DOUBLED of the pairs. A gold pair has no free
    slots to count: everybody may see it.
    """
    t, answers = schema.pair, schema.answer
    texts = c.execute(sa.select(answers.c.digest).where(answers.c.id.in_([a_id, b_id]))).scalars().all()
    if len(set(texts)) < 2:
        return None
    either = sa.or_(sa.and_(t.c.a_id == a_id, t.c.b_id == b_id), sa.and_(t.c.a_id == b_id, t.c.b_id == a_id))
    if c.execute(sa.select(t.c.id).where(either)).first():
        return None
    wanted = overlap or (2 if rng.random() < DOUBLED else 1)
    slots = 0 if purpose == "gold" else wanted
    return insert(
        c, t, prompt_id=prompt_id, a_id=a_id, b_id=b_id, purpose=purpose, round_id=round_id, overlap=wanted,
        open=slots, draw=rng.random(), priority=0.0,
    )  # fmt: skip


def join_round(c: sa.Connection, a_id: int, b_id: int, purpose: Purpose, round_id: int) -> None:
    """Count the pair of these answers as one of this round, where no round has it."""
    t = schema.pair
    mine = sa.and_(t.c.a_id == a_id, t.c.b_id == b_id, t.c.purpose == purpose, t.c.round_id.is_(None))
    c.execute(sa.update(t).where(mine).values(round_id=round_id))


def set_gold(c: sa.Connection, pair_id: int, side: Side, by: str | None = None) -> None:
    """State the right side of a gold pair, once. Raises ValueError for a side that gold cannot have."""
    if side == "bad":
        raise ValueError("a gold pair's right answer is a, b or tie: two bad answers are no test of attention.")
    c.execute(sa.insert(schema.gold).values(pair_id=pair_id, side=side, set_by=by, at=time.time()))


def insert(c: sa.Connection, table: sa.Table, **values: Any) -> int:
    """Insert one row and return its id."""
    key = c.execute(sa.insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _says_something(plain: Any) -> bool:
    if isinstance(plain, str):
        return bool(plain.strip())
    return bool(plain) and any(str(m["content"]).strip() for m in plain)
