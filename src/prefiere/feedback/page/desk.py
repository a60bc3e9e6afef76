"""One person in front of the page: who they are, the pair in their hands, and what becomes of what they send."""

from __future__ import annotations

import json
import random
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from markupsafe import Markup

from prefiere.feedback import people, schema
from prefiere.feedback.leases import Lease, Nothing, next_lease
from prefiere.feedback.page.render import said_html, text_html
from prefiere.feedback.page.security import csrf_of
from prefiere.feedback.schema import answer, event, lease, note, pair, person, prompt, text_of
from prefiere.feedback.store import Store
from prefiere.feedback.votes import NotTheirs, Said, VoteOutcome, post

CONSENT = "2026-11"
"""The version of the consent text; a new one is asked for again."""
LOCAL = "local"
"""The pseudonym of whoever uses a server that listens on this machine only."""


@dataclass(frozen=True)
class Undo:
    """The event that takes somebody's last word back: the lease and the number it will have."""

    lease: str
    seq: int


@dataclass
class Desks:
    """The store behind the page, what people are told, and whether this machine alone may enter without a token."""

    store: Store
    guidelines: str | None = None
    open: bool = False
    rng: random.Random = field(default_factory=random.SystemRandom)
    _warned: dict[int, bool] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def guidelines_html(self) -> Markup | None:
        return text_html(self.guidelines) if self.guidelines else None

    @property
    def guidelines_version(self) -> str | None:
        """What a lease remembers of what people were told."""
        return people.token_hash(self.guidelines)[:12] if self.guidelines else None

    def local(self) -> sa.RowMapping:
        """The person of a server without tokens, made at the first visit."""
        with self.store.write() as c:
            found = people.find_person(c, LOCAL)
            if found is None:
                found = people.add(c, LOCAL, role="admin", token=secrets.token_urlsafe(32))
            return c.execute(sa.select(person).where(person.c.id == found)).mappings().one()

    def who(self, token: str | None) -> sa.RowMapping | None:
        """The person with this token, or the local one."""
        if token:
            with self.store.read() as c:
                found = people.who(c, token)
            if found is not None:
                return found
        return self.local() if self.open else None

    def needs_consent(self, who: sa.RowMapping) -> bool:
        """Whether to ask before the first vote; whoever runs the server for themselves is not asked."""
        return who["consent_version"] != CONSENT and not (self.open and who["pseudonym"] == LOCAL)

    def look(self, who: sa.RowMapping) -> dict[str, Any]:
        """What the page shows this person: a pair or why there is none, and their own progress."""
        with self.store.write() as c:
            found = next_lease(
                self.store, c, who["id"], now=time.time(), rng=self.rng, guidelines=self.guidelines_version
            )
        with self.store.read() as c:
            shown: dict[str, Any] = {
                "undo": undo_of(c, who["id"]), "done": done_by(c, who["id"]), "waiting": waiting(c), "who": who,
                "csrf": csrf_of(who["token_hash"]), "guidelines": self.guidelines,
            }  # fmt: skip
            if isinstance(found, Nothing):
                until = time.strftime("%H:%M", time.localtime(found.until)) if found.until else ""
                return shown | {"part": "_empty.html", "nothing": found, "until": until}
            texts = texts_of(c, found)
        left, right = (text_of(texts[k]) for k in (("b", "a") if found.swapped else ("a", "b")))
        return shown | {
            "part": "_pair.html", "lease": found, "prompt": said_html(text_of(texts["prompt"])),
            "left": said_html(left), "right": said_html(right), "reasons": schema.REASONS,
        }  # fmt: skip

    def take(self, who: sa.RowMapping, lease_id: str, seq: int, said: Said) -> tuple[VoteOutcome, bool]:
        """Keep what somebody said; what became of it, and whether their gold answers call for a warning.

        Raises NotTheirs, ValueError for what is no vote, StoreFull.
        """
        with self.store.write() as c:
            outcome = post(self.store, c, who["id"], lease_id, seq, said, time.time())
            golden = sa.select(pair.c.purpose).join(lease, lease.c.pair_id == pair.c.id).where(lease.c.id == lease_id)
            if outcome != "new" or said.kind != "vote" or c.execute(golden).scalar() != "gold":
                return outcome, False
            return outcome, people.judge_by_gold(c, who["id"]) == "warn"


_A, _B = answer.alias("a"), answer.alias("b")
_TEXTS = (
    sa.select(prompt.c.content, _A.c.content, _B.c.content)
    .select_from(pair)
    .join(prompt, prompt.c.id == pair.c.prompt_id)
    .join(_A, _A.c.id == pair.c.a_id)
    .join(_B, _B.c.id == pair.c.b_id)
    .where(pair.c.id == sa.bindparam("pair"))
)
"""Built once: making aliases of a table takes a fifth of the time of showing a pair."""


def texts_of(c: sa.Connection, held: Lease) -> dict[str, Any]:
    """The contents of a lease's prompt and answers: prompt, a, b."""
    row = c.execute(_TEXTS, {"pair": held.pair_id}).one()
    return {"prompt": row[0], "a": row[1], "b": row[2]}


def undo_of(c: sa.Connection, person_id: int) -> Undo | None:
    """What "undo" takes back now: the last word of the person's that stands."""
    row = c.execute(
        sa.select(lease.c.id, sa.func.count(event.c.id))
        .join(event, event.c.lease_id == lease.c.id)
        .where(lease.c.person_id == person_id, lease.c.state.in_(("done", "skipped")))
        .group_by(lease.c.id)
        .order_by(sa.func.max(event.c.id).desc())
        .limit(1)
    ).first()
    return Undo(row[0], int(row[1])) if row else None


def done_by(c: sa.Connection, person_id: int) -> int:
    """How many votes of a person are in force."""
    count = sa.select(sa.func.count()).select_from(lease)
    return int(c.execute(count.where(lease.c.person_id == person_id, lease.c.state == "done")).scalar_one())


def waiting(c: sa.Connection) -> int:
    """How many free slots the queue has."""
    return int(c.execute(sa.select(sa.func.coalesce(sa.func.sum(pair.c.open), 0)).where(pair.c.open > 0)).scalar_one())


def copy_of(c: sa.Connection, who: sa.RowMapping) -> str:
    """Everything that the store holds about a person, as JSON: theirs to take away."""
    kept = ("pseudonym", "name", "kind", "role", "lang", "consent_version", "consent_at")
    a, b = answer.alias(), answer.alias()
    rows = c.execute(
        sa.select(event, lease.c.swapped, prompt.c.content.label("prompt"), a.c.content.label("a"),
                  b.c.content.label("b"), note.c.text, answer.c.content.label("ideal"))
        .join(lease, lease.c.id == event.c.lease_id).join(pair, pair.c.id == lease.c.pair_id)
        .join(prompt, prompt.c.id == pair.c.prompt_id).join(a, a.c.id == pair.c.a_id).join(b, b.c.id == pair.c.b_id)
        .outerjoin(note, note.c.event_id == event.c.id).outerjoin(answer, answer.c.id == note.c.ideal_answer_id)
        .where(lease.c.person_id == who["id"]).order_by(event.c.id)
    ).mappings()  # fmt: skip
    said = []
    for r in rows:
        left, right = (r["b"], r["a"]) if r["swapped"] else (r["a"], r["b"])
        said.append(
            {"at": schema.iso(r["at"]), "kind": r["kind"], "score": r["score"], "both_bad": r["both_bad"],
             "reason": r["reason_code"], "ms": r["ms"], "input": r["input"], "prompt": r["prompt"], "left": left,
             "right": right, "note": r["text"], "ideal": r["ideal"]}
        )  # fmt: skip
    return json.dumps({"person": {k: who[k] for k in kept}, "events": said}, ensure_ascii=True, indent=1)


__all__ = ["CONSENT", "LOCAL", "Desks", "NotTheirs", "Undo"]
