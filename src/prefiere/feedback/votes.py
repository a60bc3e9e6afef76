"""What people say: votes, skips and undos, each kept once, and what is in force of them.

An event is known by its lease and its number there: the same one posted again (a client that got no answer retries)
changes nothing, and another one under the same number is a conflict. In force is the last event of a lease that is
done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import sqlalchemy as sa

from prefiere.feedback import items, schema
from prefiere.feedback.leases import MINUTES, events_of, release, take_slot
from prefiere.feedback.schema import Side, event, lease, note, pair, person
from prefiere.feedback.store import Store

VoteOutcome: TypeAlias = Literal["new", "again", "conflict", "late"]


class NotTheirs(ValueError):
    """A lease that does not exist, or is another person's."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One act on a pair. ``score`` is as seen on screen: -3 is the left answer by far, 0 a tie, 3 the right one."""

    kind: Literal["vote", "undo", "skip"] = "vote"
    score: int | None = None
    both_bad: bool = False
    reason: str | None = None
    text: str | None = None
    ideal: str | None = None
    ms: int | None = None
    input: str | None = None

    def __post_init__(self) -> None:
        vote = self.kind == "vote"
        if vote and (self.score is None) != self.both_bad:
            raise ValueError("a vote has a score from -3 to 3, or says that both answers are bad.")
        if self.score is not None and (not vote or self.score not in range(-3, 4)):
            raise ValueError(f"score {self.score} is not one of -3 to 3.")
        if self.reason is not None and self.reason not in schema.REASONS:
            raise ValueError(f"reason {self.reason!r} is not one of {', '.join(schema.REASONS)}.")


def post(
    store: Store, c: sa.Connection, person_id: int, lease_id: str, seq: int, said: Said, now: float
) -> VoteOutcome:
    """Keep what this person said of the pair they hold, under number ``seq`` of the lease.

    "again": it was kept before. "late": the lease was over and the person has said something of this pair since; it
    stays in the log and does not count. "conflict": something else has this number, or the number is not the next one.
    Raises NotTheirs.
    """
    store.lock_person(c, person_id)
    held = c.execute(sa.select(lease).where(lease.c.id == lease_id).with_for_update()).mappings().first()
    if held is None or held["person_id"] != person_id:
        raise NotTheirs("this pair is not in your hands.")
    earlier = c.execute(sa.select(event).where(event.c.lease_id == lease_id, event.c.seq == seq)).mappings().first()
    if earlier:
        return "again" if _same(c, earlier, said) else "conflict"
    if seq != events_of(c, lease_id):
        return "conflict"
    outcome: VoteOutcome = "new"
    if said.kind == "undo":
        if held["state"] not in ("done", "skipped"):
            return "conflict"
        _reopen(c, held, person_id, now)
    elif held["state"] in ("done", "skipped"):
        return "conflict"  # undo it first
    elif held["state"] == "open":
        _close(c, held, said)
    elif not _revive(c, held, person_id, said):
        outcome = "late"
    _record(c, held, person_id, seq, said, now)
    return outcome


def _close(c: sa.Connection, held: sa.RowMapping, said: Said) -> None:
    if said.kind == "skip":
        release(c, held["id"], held["pair_id"], "skipped")
    else:
        c.execute(sa.update(lease).where(lease.c.id == held["id"]).values(state="done"))


def _revive(c: sa.Connection, held: sa.RowMapping, person_id: int, said: Said) -> bool:
    """A vote after its lease: it counts, unless the person has said something of this pair since."""
    same = sa.and_(lease.c.pair_id == held["pair_id"], lease.c.person_id == person_id, lease.c.state != "expired")
    other = c.execute(sa.select(lease).where(same)).mappings().first()
    if other and other["state"] != "open":
        return False
    if other:
        release(c, other["id"], other["pair_id"], "expired")
    if said.kind == "vote":
        take_slot(c, held["pair_id"])
    state = "done" if said.kind == "vote" else "skipped"
    c.execute(sa.update(lease).where(lease.c.id == held["id"]).values(state=state))
    return True


def _reopen(c: sa.Connection, held: sa.RowMapping, person_id: int, now: float) -> None:
    """Put a pair back into the person's hands, and the one that they hold back into the queue."""
    mine = sa.and_(lease.c.person_id == person_id, lease.c.state == "open")
    for lease_id, pair_id in c.execute(sa.select(lease.c.id, lease.c.pair_id).where(mine)).all():
        release(c, lease_id, pair_id, "expired")
    if held["state"] == "skipped":
        take_slot(c, held["pair_id"])
    again = {"state": "open", "expires": now + 60 * MINUTES}
    c.execute(sa.update(lease).where(lease.c.id == held["id"]).values(**again))


def _record(c: sa.Connection, held: sa.RowMapping, person_id: int, seq: int, said: Said, now: float) -> None:
    event_id = items.insert(
        c, event, lease_id=held["id"], seq=seq, kind=said.kind, score=said.score, both_bad=said.both_bad,
        reason_code=said.reason, ms=said.ms, input=said.input, at=now,
    )  # fmt: skip
    if said.text or said.ideal:
        ideal = None
        if said.ideal:
            prompt_id = c.execute(sa.select(pair.c.prompt_id).where(pair.c.id == held["pair_id"])).scalar_one()
            ideal = items.add_answer(c, prompt_id, said.ideal, author_id=person_id)
        c.execute(sa.insert(note).values(event_id=event_id, text=said.text, ideal_answer_id=ideal))


def _same(c: sa.Connection, earlier: sa.RowMapping, said: Said) -> bool:
    joined = sa.outerjoin(note, schema.answer, schema.answer.c.id == note.c.ideal_answer_id)
    words = sa.select(note.c.text, schema.answer.c.content).select_from(joined)
    kept = c.execute(words.where(note.c.event_id == earlier["id"])).first() or (None, None)
    before = (earlier["kind"], earlier["score"], earlier["both_bad"], earlier["reason_code"], *kept)
    return before == (said.kind, said.score, said.both_bad, said.reason, said.text or None, said.ideal or None)


# -- what is in force -------------------------------------------------------------------------------------------------


FROM_A_FILE = "file"
"""How a vote came in that was read from a file; where the file has no time, it has that of the reading."""


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote in force, turned to the pair's own sides: ``score`` -3 is answer a by far, 3 answer b by far.
    read_in: from a file, and not given here."""

    event_id: int
    pair_id: int
    prompt_id: int
    purpose: str
    person_id: int
    judge: bool
    score: int
    both_bad: bool
    swapped: bool
    random: bool
    ms: int | None
    at: float
    read_in: bool
    ideal_id: int | None

    @property
    def side(self) -> Side:
        """Which answer it prefers."""
        if self.both_bad:
            return "bad"
        return "a" if self.score < 0 else "b" if self.score > 0 else "tie"


def in_force(c: sa.Connection, *, counted: bool = True) -> list[Vote]:
    """Every vote that counts now, in the order in which they were given.

    counted: without those of people who are left out or set aside.
    """
    later = event.alias()
    last = sa.select(sa.func.max(later.c.seq)).where(later.c.lease_id == lease.c.id).correlate(lease).scalar_subquery()
    read_in = sa.func.coalesce(event.c.input, "") == FROM_A_FILE
    rows = (
        sa.select(
            event.c.id.label("event_id"), lease.c.pair_id, pair.c.prompt_id, pair.c.purpose, lease.c.person_id,
            (person.c.kind == "judge").label("judge"), event.c.score, event.c.both_bad, lease.c.swapped,
            lease.c.random, event.c.ms, event.c.at,
            read_in.label("read_in"), note.c.ideal_answer_id.label("ideal_id"),
        )
        .join(lease, lease.c.id == event.c.lease_id)
        .join(pair, pair.c.id == lease.c.pair_id)
        .join(person, person.c.id == lease.c.person_id)
        .outerjoin(note, note.c.event_id == event.c.id)
        .where(event.c.kind == "vote", lease.c.state == "done", event.c.seq == last)
        .order_by(event.c.id)
    )  # fmt: skip
    if counted:
        rows = rows.where(person.c.left_out_at.is_(None), person.c.set_aside_at.is_(None))
    votes = []
    for row in c.execute(rows).mappings():
        turned = -(row["score"] or 0) if row["swapped"] else (row["score"] or 0)
        votes.append(Vote(**dict(row) | {"score": turned}))
    return votes
