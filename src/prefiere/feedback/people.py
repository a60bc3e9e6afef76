"""The people (and judges) who vote: links, consent, gold, and taking somebody's votes out or forgetting them."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from prefiere.feedback import items, schema
from prefiere.feedback.leases import release
from prefiere.feedback.schema import answer, event, gold, lease, note, person, snapshot_row
from prefiere.feedback.store import Store, StoreError
from prefiere.feedback.votes import in_force

Role = Literal["annotate", "admin"]

WARN_AFTER, WARN_BELOW = 10, 7  # of the last 10 gold pairs
ASIDE_AFTER, ASIDE_BELOW = 20, 14  # of each 20 gold pairs


def token_hash(token: str) -> str:
    """What a store keeps of a token: nobody can get in with it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def add(
    c: sa.Connection,
    pseudonym: str,
    *,
    kind: Literal["person", "judge"] = "person",
    role: Role = "annotate",
    name: str | None = None,
    token: str | None = None,
) -> int:
    """A new person. Raises StoreError where the pseudonym is taken."""
    if not pseudonym.strip():
        raise StoreError("a person needs a pseudonym.")
    if find_person(c, pseudonym) is not None:
        raise StoreError(f"{pseudonym}: there is somebody of this name already.")
    hashed = token_hash(token) if token else None
    return items.insert(c, person, kind=kind, pseudonym=pseudonym, name=name, role=role, token_hash=hashed)


def find_person(c: sa.Connection, pseudonym: str) -> int | None:
    """The id of who has this pseudonym."""
    return c.execute(sa.select(person.c.id).where(person.c.pseudonym == pseudonym)).scalar()


def find_or_add(c: sa.Connection, pseudonym: str, kind: Literal["person", "judge"] = "person") -> int:
    """The id of who has this pseudonym, new if need be."""
    found = find_person(c, pseudonym)
    return add(c, pseudonym, kind=kind) if found is None else found


def person_named(c: sa.Connection, pseudonym: str) -> int:
    """The id of who has this pseudonym. Raises StoreError where nobody has."""
    found = find_person(c, pseudonym)
    if found is None:
        raise StoreError(f"{pseudonym}: nobody of this name. `prefiere votes people STORE` lists everybody.")
    return found


def new_token(c: sa.Connection, person_id: int) -> str:
    """A new token for a person; the one before no longer opens anything."""
    token = secrets.token_urlsafe(24)
    c.execute(sa.update(person).where(person.c.id == person_id).values(token_hash=token_hash(token)))
    return token


def who(c: sa.Connection, token: str) -> sa.RowMapping | None:
    """The person whose token this is."""
    mine = sa.and_(person.c.token_hash == token_hash(token), person.c.forgotten_at.is_(None))
    return c.execute(sa.select(person).where(mine)).mappings().first()


def consent(c: sa.Connection, person_id: int, version: str, lang: str) -> None:
    """Note that a person agreed to this version of the consent text."""
    said = {"consent_version": version, "consent_at": time.time(), "lang": lang}
    c.execute(sa.update(person).where(person.c.id == person_id).values(**said))


# -- gold -------------------------------------------------------------------------------------------------------------


def gold_record(c: sa.Connection, person_id: int) -> list[bool]:
    """Whether each gold vote in force of a person is right, in the order in which they were given."""
    right = {row.pair_id: row.side for row in c.execute(sa.select(gold.c.pair_id, gold.c.side))}
    mine = [v for v in in_force(c, counted=False) if v.person_id == person_id and v.pair_id in right]
    return [v.side == right[v.pair_id] for v in mine]


def judge_by_gold(c: sa.Connection, person_id: int) -> Literal["warn", "set_aside"] | None:
    """After a gold vote: warn below 7 right of 10; set aside, reversibly, below 14 of 20.

    In simulations this catches 83% and 94% of people who click at random, and hits 1.3% and 0.2% of those who are right
    nine times in ten.
    """
    record = gold_record(c, person_id)
    n = len(record)
    if n and n % ASIDE_AFTER == 0 and sum(record[-ASIDE_AFTER:]) < ASIDE_BELOW:
        set_aside(c, person_id, True)
        return "set_aside"
    return "warn" if n >= WARN_AFTER and sum(record[-WARN_AFTER:]) < WARN_BELOW else None


def set_aside(c: sa.Connection, person_id: int, aside: bool) -> None:
    """Stop asking a person and counting their votes, or go on doing so."""
    at = time.time() if aside else None
    c.execute(sa.update(person).where(person.c.id == person_id).values(set_aside_at=at))


# -- taking somebody out ----------------------------------------------------------------------------------------------


def leave_out(c: sa.Connection, person_id: int, out: bool = True) -> None:
    """Leave a person's votes out of every later snapshot, or take them back in. Nothing is deleted."""
    at = time.time() if out else None
    c.execute(sa.update(person).where(person.c.id == person_id).values(left_out_at=at))


@dataclass(frozen=True)
class Forgotten:
    """What became of somebody: how many votes are gone, and where copies of them are that a store cannot reach."""

    votes: int
    snapshots: tuple[int, ...]
    exports: tuple[str, ...]
    runs: tuple[str, ...]


def forget(store: Store, pseudonym: str) -> Forgotten:
    """Delete a person's name, token, notes, ideal answers and events; the number of their votes stays.

    Their pairs are free to be asked about again. Snapshots that hold their votes lose those rows, and can no longer be
    read. Raises StoreError where nobody has this name.
    """
    with store.write() as c:
        person_id = person_named(c, pseudonym)
        votes = sum(v.person_id == person_id for v in in_force(c, counted=False))
        c.execute(sa.insert(schema.forgetting).values(person_id=person_id))
        leases = sa.select(lease.c.id).where(lease.c.person_id == person_id)
        events = set(c.execute(sa.select(event.c.id).where(event.c.lease_id.in_(leases))).scalars())
        snapshots = _forget_snapshots(c, events, person_id)
        in_them = schema.export.c.snapshot_id.in_(snapshots)
        exports = tuple(c.execute(sa.select(schema.export.c.path).where(in_them)).scalars())
        trained = sa.select(schema.round_.c.run).where(schema.round_.c.snapshot_id.in_(snapshots))
        runs = tuple(str(r) for r in c.execute(trained).scalars() if r)
        for lease_id, pair_id, state in c.execute(
            sa.select(lease.c.id, lease.c.pair_id, lease.c.state).where(lease.c.person_id == person_id)
        ).all():
            if state in ("open", "done"):
                release(c, lease_id, pair_id, "expired")
        for table in (note.c.event_id, event.c.id):
            c.execute(sa.delete(table.table).where(table.in_(events)))
        c.execute(sa.delete(lease).where(lease.c.person_id == person_id))
        c.execute(sa.delete(answer).where(answer.c.author_id == person_id))
        c.execute(sa.delete(schema.forgetting))
        c.execute(
            sa.update(person)
            .where(person.c.id == person_id)
            .values(
                pseudonym=f"forgotten-{person_id}", name=None, token_hash=None, lang=None, consent_version=None,
                consent_at=None, set_aside_at=None, left_out_at=time.time(), forgotten_at=time.time(),
                forgotten_votes=votes,
            )
        )  # fmt: skip
    store.vacate()
    return Forgotten(votes, snapshots, exports, runs)


def _forget_snapshots(c: sa.Connection, events: set[int], person_id: int) -> tuple[int, ...]:
    """Delete the rows that rest on these events or on this person's ideals; which snapshots had any."""
    ideals = set(c.execute(sa.select(answer.c.id).where(answer.c.author_id == person_id)).scalars())
    s = snapshot_row
    found = [
        (row.snapshot_id, row.n)
        for row in c.execute(sa.select(s.c.snapshot_id, s.c.n, s.c.event_ids, s.c.chosen_id))
        if events.intersection(row.event_ids) or row.chosen_id in ideals
    ]
    for snapshot_id, n in found:
        c.execute(sa.delete(s).where(s.c.snapshot_id == snapshot_id, s.c.n == n))
    return tuple(sorted({snapshot_id for snapshot_id, _ in found}))
