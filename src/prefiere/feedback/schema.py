"""The tables of a store of votes. The log of events is the truth: nothing of it is ever changed, only added to.

Texts are JSON text: PostgreSQL refuses NUL, both databases refuse half a character, and JSON holds both. No foreign key
cascades: SQLite rebuilds a table to change it, and a cascade would then delete the rows that point to it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa

from prefiere.data.schema import Message, Text

APPLICATION_ID = 0x70726566  # "pref", in the header of a SQLite file
REVISION = "0001"  # of the newest migration

Purpose: TypeAlias = Literal["ask", "eval", "gold", "compare"]
Side: TypeAlias = Literal["a", "b", "tie", "bad"]

REASONS = ("alike", "unclear", "unable", "harmful", "other")
"""Why a pair was skipped, in the order of the keys 1 to 5."""


class JsonText(sa.types.TypeDecorator[Any]):
    """Any JSON value as ASCII text."""

    impl = sa.UnicodeText
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        return None if value is None else json.loads(value)

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        return self


def plain(text: Text) -> Any:
    """Raw text, or messages as JSON objects: what a content column holds."""
    return text if isinstance(text, str) else [m.as_dict() for m in text]


def text_of(value: Any) -> Text:
    """What a content column holds, as raw text or messages."""
    if isinstance(value, str):
        return value
    return tuple(
        Message(str(m["role"]), str(m["content"]), {k: v for k, v in m.items() if k not in ("role", "content")})
        for m in value
    )


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True)


def _to(name: str, target: str, **more: Any) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, sa.ForeignKey(f"{target}.id"), **{"nullable": False} | more)


def _choice(name: str, *values: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{name} IN ({', '.join(map(repr, values))})", name=name)


def _time(name: str, nullable: bool = True) -> sa.Column[float]:
    return sa.Column(name, sa.Float(53), nullable=nullable)  # seconds since 1970, UTC


person = sa.Table(
    "person",
    metadata,
    _id(),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("pseudonym", JsonText, nullable=False, unique=True),
    sa.Column("name", JsonText),
    sa.Column("token_hash", sa.Text, unique=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("lang", sa.Text),
    sa.Column("consent_version", sa.Text),
    _time("consent_at"),
    _time("set_aside_at"),
    _time("left_out_at"),
    _time("forgotten_at"),
    sa.Column("forgotten_votes", sa.Integer),
    _choice("kind", "person", "judge"),
    _choice("role", "annotate", "admin"),
)
model = sa.Table(
    "model",
    metadata,
    _id(),
    sa.Column("label", JsonText, nullable=False),
    sa.Column("path", JsonText, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False, unique=True),
    sa.Column("run", JsonText),
    sa.Column("step", sa.Integer),
    sa.Column("round_id", sa.Integer),
)
prompt = sa.Table(
    "prompt",
    metadata,
    _id(),
    sa.Column("content", JsonText, nullable=False),
    sa.Column("tools", JsonText, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("source", JsonText),
)
answer = sa.Table(
    "answer",
    metadata,
    _id(),
    _to("prompt_id", "prompt"),
    _to("model_id", "model", nullable=True),
    _to("author_id", "person", nullable=True),
    sa.Column("content", JsonText, nullable=False),
    sa.Column("seed", sa.Integer),
    sa.Column("sample", sa.Integer),
    sa.Column("temperature", sa.Float(53)),
    sa.Column("top_p", sa.Float(53)),
    sa.Column("max_new_tokens", sa.Integer),
    sa.Column("digest", sa.Text, nullable=False),
    sa.UniqueConstraint("prompt_id", "model_id", "seed", "sample"),
)
sa.Index("ix_answer_prompt_id_digest", answer.c.prompt_id, answer.c.digest)
pair = sa.Table(
    "pair",
    metadata,
    _id(),
    _to("prompt_id", "prompt"),
    _to("a_id", "answer"),
    _to("b_id", "answer"),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("round_id", sa.Integer),
    sa.Column("overlap", sa.Integer, nullable=False),
    sa.Column("open", sa.Integer, nullable=False),
    sa.Column("draw", sa.Float(53), nullable=False),
    sa.Column("priority", sa.Float(53), nullable=False, server_default="0"),
    sa.Column("scored_by", sa.Text),
    sa.UniqueConstraint("a_id", "b_id"),
    sa.CheckConstraint("open >= 0", name="open"),
    _choice("purpose", "ask", "eval", "gold", "compare"),
)
_open = sa.text("open > 0")
sa.Index("ix_pair_queue", pair.c.priority.desc(), pair.c.draw, sqlite_where=_open, postgresql_where=_open)
gold = sa.Table(
    "gold",
    metadata,
    sa.Column("pair_id", sa.Integer, sa.ForeignKey("pair.id"), primary_key=True),
    sa.Column("side", sa.Text, nullable=False),
    sa.Column("set_by", JsonText),
    _time("at", nullable=False),
    _choice("side", "a", "b", "tie"),
)
lease = sa.Table(
    "lease",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _to("pair_id", "pair"),
    _to("person_id", "person"),
    sa.Column("swapped", sa.Boolean, nullable=False),
    sa.Column("random", sa.Boolean, nullable=False),  # drawn without looking at any score
    sa.Column("guidelines_version", sa.Text),
    _time("issued", nullable=False),
    _time("expires", nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    _choice("state", "open", "done", "skipped", "expired"),
)
_kept, _held = sa.text("state <> 'expired'"), sa.text("state = 'open'")
sa.Index("uq_lease_pair_person", lease.c.pair_id, lease.c.person_id, unique=True,
         sqlite_where=_kept, postgresql_where=_kept)  # fmt: skip
sa.Index("uq_lease_person_open", lease.c.person_id, unique=True, sqlite_where=_held, postgresql_where=_held)
sa.Index("ix_lease_expires", lease.c.expires, sqlite_where=_held, postgresql_where=_held)
sa.Index("ix_lease_person_id", lease.c.person_id)
event = sa.Table(
    "event",
    metadata,
    _id(),
    sa.Column("lease_id", sa.Text, sa.ForeignKey("lease.id"), nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("score", sa.Integer),  # as seen on screen: -3 is the left answer, 3 the right one
    sa.Column("both_bad", sa.Boolean, nullable=False),
    sa.Column("reason_code", sa.Text),
    sa.Column("ms", sa.Integer),
    sa.Column("input", sa.Text),
    _time("at", nullable=False),
    sa.UniqueConstraint("lease_id", "seq"),
    sa.CheckConstraint("score BETWEEN -3 AND 3", name="score"),
    _choice("kind", "vote", "undo", "skip"),
)
note = sa.Table(
    "note",
    metadata,
    sa.Column("event_id", sa.Integer, sa.ForeignKey("event.id"), primary_key=True),
    sa.Column("text", JsonText),
    _to("ideal_answer_id", "answer", nullable=True),
)
round_ = sa.Table(
    "round",
    metadata,
    _id(),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("recipe_digest", sa.Text, nullable=False),
    sa.Column("before_model", JsonText),
    sa.Column("after_model", JsonText),
    sa.Column("snapshot_id", sa.Integer),
    sa.Column("run", JsonText),
    _time("started", nullable=False),
    _time("ended"),
    sa.Column("reason", JsonText),
    sa.UniqueConstraint("recipe_digest", "n"),
)
snapshot = sa.Table(
    "snapshot",
    metadata,
    _id(),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("last_event", sa.Integer),
    sa.Column("formula", sa.Text, nullable=False),
    sa.Column("left_out", JsonText, nullable=False),
    _time("at", nullable=False),
)
snapshot_row = sa.Table(
    "snapshot_row",
    metadata,
    sa.Column("snapshot_id", sa.Integer, sa.ForeignKey("snapshot.id"), primary_key=True),
    sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
    _to("pair_id", "pair"),
    _to("chosen_id", "answer"),
    _to("rejected_id", "answer"),
    sa.Column("label", sa.Float(53)),  # NULL: both answers are bad
    sa.Column("weight", sa.Float(53), nullable=False),
    sa.Column("ideal", sa.Boolean, nullable=False),
    sa.Column("event_ids", JsonText, nullable=False),
)
export = sa.Table(
    "export",
    metadata,
    _id(),
    _to("snapshot_id", "snapshot"),
    sa.Column("path", JsonText, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    _time("at", nullable=False),
)
forgetting = sa.Table("forgetting", metadata, sa.Column("person_id", sa.Integer, primary_key=True))
"""Holds a row only inside the transaction that forgets somebody: without it, nothing immutable can be deleted."""

IMMUTABLE = ("model", "prompt", "answer", "gold", "event", "snapshot", "snapshot_row")


def triggers(dialect: str) -> list[str]:
    """The statements that keep the immutable tables from changes, in this dialect (sqlite or postgresql)."""
    made = []
    if dialect == "postgresql":
        made.append(
            "CREATE FUNCTION prefiere_immutable() RETURNS trigger AS $$ BEGIN "
            "IF TG_OP = 'DELETE' AND EXISTS (SELECT 1 FROM forgetting) THEN RETURN OLD; END IF; "
            "RAISE EXCEPTION '% is a log: nothing in it is changed', TG_TABLE_NAME; END $$ LANGUAGE plpgsql"
        )
    for name in IMMUTABLE:
        if dialect == "postgresql":
            made.append(
                f"CREATE TRIGGER {name}_immutable BEFORE UPDATE OR DELETE ON {name} "
                "FOR EACH ROW EXECUTE FUNCTION prefiere_immutable()"
            )
            continue
        refuse = f"BEGIN SELECT RAISE(ABORT, '{name} is a log: nothing in it is changed'); END"
        made.append(f"CREATE TRIGGER {name}_no_update BEFORE UPDATE ON {name} {refuse}")
        allowed = "WHEN NOT EXISTS (SELECT 1 FROM forgetting)"
        made.append(f"CREATE TRIGGER {name}_no_delete BEFORE DELETE ON {name} {allowed} {refuse}")
    return made


def iso(at: float) -> str:
    """A moment as an ISO 8601 time in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
