"""Into a store from files, and out of it: votes of elsewhere, pairs to ask about, gold, and what was learnt from."""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

import sqlalchemy as sa

from prefiere.data import formats
from prefiere.data.schema import Comparison, Kind
from prefiere.data.writers import can_be_written
from prefiere.feedback import items, people, schema
from prefiere.feedback.schema import Purpose
from prefiere.feedback.store import Store, hidden
from prefiere.feedback.votes import FROM_A_FILE

As: TypeAlias = Literal["votes", "pairs", "gold"]
_CHUNK = 200  # rows a transaction: others who write wait for one chunk only


def read_in(
    store: Store,
    source: str,
    *,
    into: As = "votes",
    purpose: Purpose = "ask",
    overlap: int | None = None,
    seed: int = 0,
) -> Counter[str]:
    """Add the comparisons of a file, in any layout that `data.formats` reads. Returns what became of them.

    votes: each is a vote of the person it names (of the file, where it names nobody). pairs: their answers are to be
    asked about, whatever was said. gold: what was said is the right answer, by which people are measured.
    """
    records = formats.read_comparisons(source)
    counts: Counter[str] = Counter()
    rng = random.Random(seed)
    chunk: list[Comparison] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == _CHUNK:
            counts += _add(store, chunk, into, purpose, overlap, rng, Path(source).name)
            chunk = []
    counts += _add(store, chunk, into, purpose, overlap, rng, Path(source).name)
    return counts + Counter({f"left out ({why})": n for why, n in records.counts.dropped.items()})


def _add(
    store: Store, records: Iterable[Comparison], into: As, purpose: Purpose, overlap: int | None, rng: random.Random,
    name: str,
) -> Counter[str]:  # fmt: skip
    counts: Counter[str] = Counter()
    with store.write() as c:
        for r in records:
            if into == "gold" and r.preference == "both_bad":
                counts["left out (both bad cannot be gold)"] += 1
                continue
            pair_id, new, turned = _pair_of(c, r, "gold" if into == "gold" else purpose, overlap, rng)
            counts["pairs added" if new else "pairs there before"] += 1
            if into == "gold" and new:
                side = {"a": "a", "b": "b"}.get(r.preference, "tie")
                items.set_gold(c, pair_id, side, name)  # type: ignore[arg-type]
            elif into == "votes":
                counts["votes added" if _vote(c, r, pair_id, turned, name) else "votes there before"] += 1
    return counts


def _pair_of(
    c: sa.Connection, r: Comparison, purpose: Purpose, overlap: int | None, rng: random.Random
) -> tuple[int, bool, bool]:
    """The id of a record's pair, whether it is new, and whether the store holds its answers the other way round."""
    prompt_id = items.add_prompt(c, r.prompt, r.tools, r.source)
    a, b = items.add_answer(c, prompt_id, r.answer_a), items.add_answer(c, prompt_id, r.answer_b)
    made = items.add_pair(c, prompt_id, a, b, purpose=purpose, overlap=overlap, rng=rng)
    if made is not None:
        return made, True, False
    t = schema.pair
    both = sa.and_(t.c.a_id.in_([a, b]), t.c.b_id.in_([a, b]))
    row = c.execute(sa.select(t.c.id, t.c.a_id).where(both)).one()
    return row.id, False, row.a_id == b


def _vote(c: sa.Connection, r: Comparison, pair_id: int, turned: bool, name: str) -> bool:
    """Keep what a record says as a vote in a lease that is done; False where its person has one on this pair."""
    person_id = people.find_or_add(c, r.annotator or name)
    t = schema.lease
    had = sa.select(t.c.id).where(t.c.pair_id == pair_id, t.c.person_id == person_id, t.c.state != "expired")
    if c.execute(had).first():
        return False
    at = datetime.fromisoformat(r.created_at).timestamp() if r.created_at else time.time()
    lease_id = secrets.token_hex(16)
    c.execute(
        sa.insert(t).values(
            id=lease_id, pair_id=pair_id, person_id=person_id, swapped=False, random=True, issued=at, expires=at,
            state="done",
        )
    )  # fmt: skip
    free = schema.pair.c.open > 0
    c.execute(sa.update(schema.pair).where(schema.pair.c.id == pair_id, free).values(open=schema.pair.c.open - 1))
    size = 2 if r.strength is None else max(1, min(3, round(3 * r.strength)))  # no strength stated: a middling one
    score = {"a": -size, "b": size, "tie": 0, "both_bad": None}[r.preference]
    score = -score if turned and score else score
    items.insert(
        c, schema.event, lease_id=lease_id, seq=0, kind="vote", score=score, both_bad=r.preference == "both_bad",
        input=FROM_A_FILE, at=at,
    )  # fmt: skip
    return True


def write_out(store: Store, path: Path, kind: Kind = "pairs", snapshot: int | None = None) -> int:
    """Write what a store teaches as a file that `data.formats` reads back; noted in the store. Returns the records."""
    can_be_written(path)  # reading takes a snapshot of the store
    name = store.name if snapshot is None else f"{store.name}#{snapshot}"
    source = formats.Records[object](name, kind)
    written = formats.write(source, path)  # type: ignore[arg-type]
    part = source.files[0].removeprefix(hidden(store.name))
    number = part.removeprefix("#").partition("@")[0]
    if number.isdigit():
        with store.write() as c:
            items.insert(c, schema.export, snapshot_id=int(number), path=str(path.resolve()), kind=kind, at=time.time())
    return written
