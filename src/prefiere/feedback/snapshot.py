"""What a run learns from: the votes of one moment as labelled pairs, kept to trace the run and to repeat it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefiere.feedback import items, schema
from prefiere.feedback.schema import answer, pair, person, prompt, snapshot, snapshot_row
from prefiere.feedback.science.labels import Given, Reliability, label_pairs
from prefiere.feedback.store import Store, StoreError, hidden
from prefiere.feedback.votes import Vote, in_force

FORMULA = "dawid-skene-strength-1"


@dataclass(frozen=True, slots=True)
class Labelled:
    """What one pair teaches. ``label`` None: both answers are bad. ``ideal``: the chosen answer is a person's own."""

    pair_id: int
    chosen_id: int
    rejected_id: int
    label: float | None
    weight: float
    ideal: bool
    event_ids: tuple[int, ...]


def reliable(c: sa.Connection, votes: Sequence[Vote]) -> tuple[dict[Any, Any], Reliability]:
    """The label of each pair, and the reliability of each person, from these votes (see `science.labels`)."""
    truth = {row.pair_id: row.side for row in c.execute(sa.select(schema.gold.c.pair_id, schema.gold.c.side))}
    sides = {p: 1 if side == "b" else -1 for p, side in truth.items() if side != "tie"}
    return label_pairs([Given(v.person_id, v.pair_id, v.score) for v in votes if not v.both_bad], sides)


def labelled(c: sa.Connection, purpose: str = "ask") -> list[Labelled]:
    """What the votes in force say of all pairs of this purpose, in the order of the pairs.

    Everybody's votes on every pair, gold and comparisons included, tell how reliable they are. Two bad answers: where
    more than half of the votes on a pair say so; fewer lower the pair's weight. An ideal stands over both answers.
    """
    votes = in_force(c)
    labels, _ = reliable(c, votes)
    of_pair: dict[int, list[Vote]] = defaultdict(list)
    for v in votes:
        of_pair[v.pair_id].append(v)
    rows: list[Labelled] = []
    chosen = sa.select(pair.c.id, pair.c.a_id, pair.c.b_id).where(pair.c.purpose == purpose).order_by(pair.c.id)
    for pair_id, a, b in c.execute(chosen):
        said = of_pair.get(pair_id, [])
        if not said:
            continue
        events = tuple(v.event_id for v in said)
        bad = sum(v.both_bad for v in said) / len(said)
        if bad > 0.5:
            rows.append(Labelled(pair_id, a, b, None, 1.0, False, events))
        else:
            found = labels[pair_id]
            good, worse = (b, a) if found.side > 0 else (a, b)
            rows.append(Labelled(pair_id, good, worse, found.label, found.weight * (1 - bad), False, events))
        for v in said:
            if v.ideal_id is not None:
                rows += [Labelled(pair_id, v.ideal_id, other, 1.0, 1.0, True, (v.event_id,)) for other in (a, b)]
    return rows


def snapshot_contents(c: sa.Connection, rows: Sequence[Labelled]) -> list[dict[str, Any]]:
    """Each row with its texts as plain values: prompt, tools, chosen, rejected, and the row itself."""
    texts = {r.id: r.content for r in c.execute(sa.select(answer.c.id, answer.c.content))}
    asked = {
        r.id: (r.content, r.tools)
        for r in c.execute(
            sa.select(pair.c.id, prompt.c.content, prompt.c.tools).join(prompt, prompt.c.id == pair.c.prompt_id)
        )
    }
    return [
        {"prompt": asked[r.pair_id][0], "tools": asked[r.pair_id][1], "chosen": texts[r.chosen_id],
         "rejected": texts[r.rejected_id], "row": r}
        for r in rows
        if r.chosen_id in texts
    ]  # fmt: skip


def snapshot_digest(found: Sequence[dict[str, Any]]) -> str:
    """A hash of all that a run learns from these rows: texts, labels and weights, but no ids of votes or people."""
    said = [
        [f["prompt"], f["tools"], f["chosen"], f["rejected"], f["row"].label, f["row"].weight, f["row"].ideal]
        for f in found
    ]
    return items.digest(said)


def take(store: Store) -> int:
    """The snapshot of the votes now in force; the same one again while they teach the same."""
    with store.write() as c:
        return take_in(c)


def take_in(c: sa.Connection) -> int:
    """As `take`, in a writing transaction that the caller has opened."""
    rows = labelled(c)
    found = snapshot_digest(snapshot_contents(c, rows))
    last = sa.select(snapshot.c.id).where(snapshot.c.digest == found).order_by(snapshot.c.id.desc()).limit(1)
    if (known := c.execute(last).scalar()) is not None and _whole(c, known, found):
        return int(known)
    out = sa.or_(person.c.left_out_at.is_not(None), person.c.set_aside_at.is_not(None))
    left_out = c.execute(sa.select(person.c.id).where(out, person.c.forgotten_at.is_(None))).scalars().all()
    made = items.insert(
        c, snapshot, digest=found, formula=FORMULA, left_out=sorted(left_out), at=time.time(),
        last_event=c.execute(sa.select(sa.func.max(schema.event.c.id))).scalar(),
    )  # fmt: skip
    values = [
        {"snapshot_id": made, "n": n, "pair_id": r.pair_id, "chosen_id": r.chosen_id, "rejected_id": r.rejected_id,
         "label": r.label, "weight": r.weight, "ideal": r.ideal, "event_ids": list(r.event_ids)}
        for n, r in enumerate(rows)
    ]  # fmt: skip
    if values:
        c.execute(sa.insert(snapshot_row), values)
    return made


def load_snapshot(c: sa.Connection, snapshot_id: int, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The digest and the rows of a snapshot. Raises StoreError where there is none, or where it is no longer whole."""
    digest = c.execute(sa.select(snapshot.c.digest).where(snapshot.c.id == snapshot_id)).scalar()
    if digest is None:
        raise StoreError(f"{hidden(name)}: there is no snapshot {snapshot_id} in this store.")
    found = snapshot_contents(c, _rows(c, snapshot_id))
    if snapshot_digest(found) != digest:
        raise StoreError(
            f"{hidden(name)}: snapshot {snapshot_id} held votes of somebody who was forgotten; it cannot be read any "
            f"more. {hidden(name)} alone names what is in force now."
        )
    return digest, found


def _rows(c: sa.Connection, snapshot_id: int) -> list[Labelled]:
    r = snapshot_row.c
    columns = (r.pair_id, r.chosen_id, r.rejected_id, r.label, r.weight, r.ideal, r.event_ids)
    rows = c.execute(sa.select(*columns).where(r.snapshot_id == snapshot_id).order_by(r.n))
    return [Labelled(*row[:6], tuple(row[6])) for row in rows]


def _whole(c: sa.Connection, snapshot_id: int, digest: str) -> bool:
    return snapshot_digest(snapshot_contents(c, _rows(c, snapshot_id))) == digest
