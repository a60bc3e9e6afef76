"""From what was learnt back to who said it: the votes, people, answers, models, snapshots and runs of one pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from prefiere import untrusted
from prefiere.feedback import schema
from prefiere.feedback.schema import answer, event, lease, model, note, pair, person, prompt, snapshot_row
from prefiere.feedback.store import Store, StoreError, hidden


def why(store: Store, pair_id: int) -> dict[str, Any]:
    """Everything that the store knows of a pair: texts, models, each event with its person, and where it was learnt.

    Raises StoreError where there is no such pair.
    """
    with store.read() as c:
        row = c.execute(
            sa.select(pair, prompt.c.content, prompt.c.source)
            .join(prompt, prompt.c.id == pair.c.prompt_id)
            .where(pair.c.id == pair_id)
        ).mappings().first()  # fmt: skip
        if row is None:
            raise StoreError(f"{hidden(store.name)}: there is no pair {pair_id}.")
        gold = c.execute(sa.select(schema.gold.c.side).where(schema.gold.c.pair_id == pair_id)).scalar()
        return {
            "pair": pair_id,
            "purpose": row["purpose"],
            "prompt": row["content"],
            "source": row["source"],
            "gold": gold,
            "answer_a": _answer(c, row["a_id"]),
            "answer_b": _answer(c, row["b_id"]),
            "said": _said(c, pair_id),
            "learnt": _learnt(c, pair_id),
        }


def _answer(c: sa.Connection, answer_id: int) -> dict[str, Any]:
    joined = sa.outerjoin(answer, model, model.c.id == answer.c.model_id)
    columns = (answer.c.content, answer.c.seed, answer.c.sample, model.c.label, model.c.path, model.c.run, model.c.step)
    row = c.execute(sa.select(*columns).select_from(joined).where(answer.c.id == answer_id)).mappings().one()
    return {k: v for k, v in row.items() if v is not None}


def _said(c: sa.Connection, pair_id: int) -> list[dict[str, Any]]:
    """Every event on the pair, in order; ``a`` and ``b`` are the pair's own sides. ``counts``: it is in force."""
    rows = c.execute(
        sa.select(event, lease.c.swapped, lease.c.state, person.c.pseudonym, person.c.left_out_at, note.c.text)
        .join(lease, lease.c.id == event.c.lease_id)
        .join(person, person.c.id == lease.c.person_id)
        .outerjoin(note, note.c.event_id == event.c.id)
        .where(lease.c.pair_id == pair_id)
        .order_by(event.c.id)
    ).mappings().all()  # fmt: skip
    last = {r["lease_id"]: r["id"] for r in rows}
    found = []
    for r in rows:
        turned = (r["score"] or 0) * (-1 if r["swapped"] else 1)
        side = "both bad" if r["both_bad"] else "a" if turned < 0 else "b" if turned > 0 else "tie"
        counts = r["kind"] == "vote" and r["state"] == "done" and last[r["lease_id"]] == r["id"]
        found.append(
            {"event": r["id"], "person": r["pseudonym"], "at": schema.iso(r["at"]), "kind": r["kind"],
             "side": side if r["kind"] == "vote" else None, "strength": abs(turned), "reason": r["reason_code"],
             "note": r["text"], "counts": counts and r["left_out_at"] is None}
        )  # fmt: skip
    return found


def _learnt(c: sa.Connection, pair_id: int) -> list[dict[str, Any]]:
    s, r = snapshot_row.c, schema.round_
    rows = c.execute(
        sa.select(s.snapshot_id, s.label, s.weight, s.ideal, r.c.run)
        .select_from(sa.outerjoin(snapshot_row, r, r.c.snapshot_id == s.snapshot_id))
        .where(s.pair_id == pair_id)
        .order_by(s.snapshot_id, s.n)
    ).mappings()  # fmt: skip
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def runs_that_hold(store: str, pseudonym: str, snapshots: tuple[int, ...], folder: Path) -> list[str]:
    """The runs in a folder, or up to two folders below it, that learnt from one of these snapshots of this store, or
    that name this person among those whose votes they rest on, leave out, or were compared by."""
    found = []
    files = {p for depth in ("*", "*/*", "*/*/*") for p in folder.glob(f"{depth}/recipe.yaml")}
    files |= {p for depth in ("*", "*/*", "*/*/*") for p in folder.glob(f"{depth}/data.json")}
    for path in sorted({p.parent for p in files}):
        if any(p.is_symlink() for p in (path, *path.parents) if p != folder and p.is_relative_to(folder)):
            continue
        data, blind = _record(path / "data.json"), _record(path / "blind.json")
        said = json.dumps(data, ensure_ascii=False)
        read = any(f"{hidden(store)}#{number}@" in said for number in snapshots)
        if read or pseudonym in _names(data, hidden(store)) | _names(blind, hidden(store)):
            found.append(str(path))
    return found


def _record(path: Path) -> Any:
    try:
        return untrusted.read_json(path)
    except (OSError, ValueError):
        return {}


def _names(record: Any, store: str) -> set[str]:
    """The pseudonyms in a record of who said so, wherever it stands in another."""
    if isinstance(record, list):
        return set().union(*(_names(v, store) for v in record)) if record else set()
    if not isinstance(record, dict):
        return set()
    if record.get("store") == store:
        people = record.get("people") or []
        named = {str(p.get("name") if isinstance(p, dict) else p) for p in people if isinstance(people, list)}
        return named | set(record.get("left_out") or ())
    return set().union(*(_names(v, store) for v in record.values())) if record else set()
