"""Who is asked what: a person takes a pair for a while (a lease), and nobody else is asked once its slots are taken.

``pair.open`` counts the free slots and changes in the transaction of the lease. Every function here takes the
connection of one writing transaction, which the caller has opened, and the time.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from prefiere.feedback import schema
from prefiere.feedback.schema import lease, pair, person
from prefiere.feedback.store import Store

MINUTES = 15
GOLD, GOLD_FIRST, FIRST = 0.05, 0.15, 20  # the share of gold pairs, and at a person's first votes
RANDOM = 0.2  # the share of questions that no score chooses, for ever: active orders bias cross-validated accuracy
_EXPIRED_AT_ONCE = 20


@dataclass(frozen=True)
class Lease:
    """A pair in a person's hands; ``seq`` is the number that their next event has."""

    id: str
    pair_id: int
    swapped: bool
    seq: int
    expires: float


@dataclass(frozen=True)
class Nothing:
    """Why there is no pair to give: the sort of reason, how many pairs others hold, and until when."""

    reason: Literal["all_done", "held", "training", "sampling", "no_pairs", "set_aside"]
    held: int = 0
    until: float | None = None


def next_lease(
    store: Store, c: sa.Connection, person_id: int, *, now: float, rng: random.Random, guidelines: str | None = None
) -> Lease | Nothing:
    """The pair in this person's hands, renewed; else a new one for them; else why there is none."""
    store.lock_person(c, person_id)
    expire(c, now)
    who = c.execute(sa.select(person).where(person.c.id == person_id)).mappings().one()
    held = c.execute(
        sa.select(lease).where(lease.c.person_id == person_id, lease.c.state == "open")
    ).mappings().first()  # fmt: skip
    if held:
        expires = now + 60 * MINUTES
        c.execute(sa.update(lease).where(lease.c.id == held["id"]).values(expires=expires))
        return Lease(held["id"], held["pair_id"], held["swapped"], events_of(c, held["id"]), expires)
    if who["set_aside_at"] is not None:
        return Nothing("set_aside")
    chosen, at_random = _choose(c, person_id, rng)
    if chosen is None:
        return _why_nothing(c, person_id)
    return _issue(c, person_id, chosen, at_random, now=now, rng=rng, guidelines=guidelines)


def hand(
    store: Store, c: sa.Connection, person_id: int, pair_id: int, *, now: float, rng: random.Random,
    guidelines: str | None = None,
) -> Lease:  # fmt: skip
    """Put one pair into a person's hands: the one that they asked for. What they held goes back into the queue."""
    store.lock_person(c, person_id)
    mine = sa.and_(lease.c.person_id == person_id, lease.c.state == "open")
    for lease_id, held in c.execute(sa.select(lease.c.id, lease.c.pair_id).where(mine)).all():
        release(c, lease_id, held, "expired")
    return _issue(c, person_id, pair_id, False, now=now, rng=rng, guidelines=guidelines)


def expire(c: sa.Connection, now: float) -> int:
    """Take back at most 20 leases whose time is over. Returns how many."""
    over = c.execute(
        sa.select(lease.c.id, lease.c.pair_id)
        .where(lease.c.state == "open", lease.c.expires < now)
        .order_by(lease.c.pair_id)
        .limit(_EXPIRED_AT_ONCE)
        .with_for_update(skip_locked=True)
    ).all()
    for lease_id, pair_id in over:
        release(c, lease_id, pair_id, "expired")
    return len(over)


def release(c: sa.Connection, lease_id: str, pair_id: int, state: Literal["expired", "skipped"]) -> None:
    """End a lease without a vote: its slot is free again."""
    c.execute(sa.update(lease).where(lease.c.id == lease_id).values(state=state))
    counted = sa.and_(pair.c.id == pair_id, pair.c.purpose != "gold")
    c.execute(sa.update(pair).where(counted).values(open=pair.c.open + 1))


def take_slot(c: sa.Connection, pair_id: int) -> None:
    """Take a free slot of a pair, or give the pair one more: the work of people is never refused."""
    row = c.execute(sa.select(pair.c.open, pair.c.purpose).where(pair.c.id == pair_id).with_for_update()).one()
    if row.purpose == "gold":
        return
    change = {"open": pair.c.open - 1} if row.open else {"overlap": pair.c.overlap + 1}
    c.execute(sa.update(pair).where(pair.c.id == pair_id).values(**change))


def renew(c: sa.Connection, person_id: int, lease_id: str, now: float) -> bool:
    """Keep an open lease for another while; False where it is not theirs or not open."""
    mine = sa.and_(lease.c.id == lease_id, lease.c.person_id == person_id, lease.c.state == "open")
    done = c.execute(sa.update(lease).where(mine).values(expires=now + 60 * MINUTES))
    return done.rowcount == 1


def events_of(c: sa.Connection, lease_id: str) -> int:
    """How many events a lease has: the next one's number."""
    count = sa.select(sa.func.count()).select_from(schema.event).where(schema.event.c.lease_id == lease_id)
    return int(c.execute(count).scalar_one())


def _unseen(person_id: int) -> sa.ColumnElement[bool]:
    had = sa.select(lease.c.id).where(
        lease.c.pair_id == pair.c.id, lease.c.person_id == person_id, lease.c.state != "expired"
    )
    return ~sa.exists(had)


def _choose(c: sa.Connection, person_id: int, rng: random.Random) -> tuple[int | None, bool]:
    """A pair that this person has not had, and whether it was drawn without looking at scores."""
    done = sa.select(sa.func.count()).select_from(lease)
    had = int(c.execute(done.where(lease.c.person_id == person_id, lease.c.state == "done")).scalar_one())
    if rng.random() < (GOLD_FIRST if had < FIRST else GOLD):
        golden = sa.select(pair.c.id).where(pair.c.purpose == "gold", _unseen(person_id))
        ids = c.execute(golden.order_by(pair.c.draw).limit(64)).scalars().all()
        if ids:
            return rng.choice(ids), False
    free = sa.select(pair.c.id).where(pair.c.open > 0, _unseen(person_id))
    top = sa.select(pair.c.priority).where(pair.c.open > 0, _unseen(person_id))
    highest = c.execute(top.order_by(pair.c.priority.desc()).limit(1)).scalar()
    if highest is None:
        return None, False
    at_random = rng.random() < RANDOM or highest == 0.0
    if not at_random:
        free = free.where(pair.c.priority == highest)
    salt = random.Random(f"salt of {person_id}").random()  # everybody begins elsewhere in the same shuffled circle
    for where in (pair.c.draw >= salt, pair.c.draw < salt):
        found = c.execute(free.where(where).order_by(pair.c.draw).limit(1).with_for_update(skip_locked=True)).scalar()
        if found is not None:
            return int(found), at_random
    return None, False


def _issue(
    c: sa.Connection, person_id: int, pair_id: int, at_random: bool, *, now: float, rng: random.Random, guidelines: Any
) -> Lease:
    row = c.execute(sa.select(pair).where(pair.c.id == pair_id)).mappings().one()
    made = Lease(secrets.token_hex(16), pair_id, _swapped(c, row, rng), 0, now + 60 * MINUTES)
    c.execute(
        sa.insert(lease).values(
            id=made.id, pair_id=pair_id, person_id=person_id, swapped=made.swapped, random=at_random,
            guidelines_version=guidelines, issued=now, expires=made.expires, state="open",
        )
    )  # fmt: skip
    if row["purpose"] != "gold":
        c.execute(sa.update(pair).where(pair.c.id == pair_id).values(open=pair.c.open - 1))
    return made


def _swapped(c: sa.Connection, row: Any, rng: random.Random) -> bool:
    """Whether answer b stands on the left: a coin flip, but in a comparison of models both orders equally often."""
    if row["purpose"] == "compare":
        same = sa.select(lease.c.swapped).join(pair, pair.c.id == lease.c.pair_id)
        seen = c.execute(
            same.where(pair.c.prompt_id == row["prompt_id"], pair.c.purpose == "compare", lease.c.state != "expired")
        ).scalars().all()  # fmt: skip
        if lean := sum(1 if s else -1 for s in seen):
            return lean < 0
    return rng.random() < 0.5


def _why_nothing(c: sa.Connection, person_id: int) -> Nothing:
    """Others hold the last pairs; else what the newest round is at says whether more will come, and of what."""
    held = sa.select(sa.func.count(), sa.func.min(lease.c.expires)).where(
        lease.c.state == "open", lease.c.person_id != person_id
    )
    count, until = c.execute(held).one()
    if count:
        return Nothing("held", int(count), until)
    newest = sa.select(schema.round_.c.state).order_by(schema.round_.c.id.desc()).limit(1)
    if reason := _AT_WORK.get(str(c.execute(newest).scalar())):
        return Nothing(reason)
    some = c.execute(sa.select(pair.c.id).where(pair.c.purpose != "gold").limit(1)).first()
    return Nothing("all_done" if some else "no_pairs")


_AT_WORK: dict[str, Literal["training", "sampling"]] = {
    "new": "sampling", "sampling": "sampling", "sampling_after": "sampling", "frozen": "training",
    "training": "training",
}  # fmt: skip
"""What a round does while it asks nobody."""
