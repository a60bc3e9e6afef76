"""A store as a source of data: ``--data votes.db`` reads what the votes in force teach, ``votes.db#3`` snapshot 3.

Pairs, judgements and demonstrations come from a snapshot, which is taken if need be, so that a run names what it learnt
from; comparisons are the votes themselves. Rows are in layouts that `data.formats` reads from files, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from prefiere.data.schema import Kind
from prefiere.data.sources import Part, Parts
from prefiere.data.splits import choose_split
from prefiere.data.values import DataError
from prefiere.feedback import items, schema, snapshot
from prefiere.feedback.schema import answer, pair, person, prompt
from prefiere.feedback.store import Store, hidden
from prefiere.feedback.testimony import testimony_of
from prefiere.feedback.votes import in_force

Numbered = list[tuple[int, dict[str, Any]]]


def parts(source: str, kind: Kind, split: str | None) -> Parts:
    """The rows of a store of this kind. Splits: ``train`` (pairs asked to learn from) and ``eval`` (never learnt from).

    Raises DataError where the store holds nothing of the kind.
    """
    where, _, number = source.partition("#")
    store = Store.open(where)
    try:
        found = _found(store, number, kind, split)
    finally:
        store.close()
    return found


def pinned(source: str) -> str:
    """A store's name with the snapshot of the votes now in force, as ``votes.db#3``; what names one is kept.

    Raises StoreError where there is no store.
    """
    if "#" in source:
        return source
    store = Store.open(source)
    try:
        return f"{source}#{snapshot.take(store)}"
    finally:
        store.close()


def _found(store: Store, number: str, kind: Kind, split: str | None) -> Parts:
    chosen = choose_split(("train", "eval"), kind, split or "train", store.name, "train")
    name = hidden(store.name)
    if kind == "comparisons" and number:
        raise DataError(f"{name}#{number}: a snapshot holds pairs; {kind} are read from {name}.")
    if kind in ("prompts", "comparisons") and not number:
        with store.read() as c:
            rows = _prompts(c) if kind == "prompts" else _comparisons(c, chosen)
        if not rows:
            raise DataError(f"{name}: no {'prompts' if kind == 'prompts' else 'votes'} in it yet.")
        return _as_parts(name, rows, items.digest(rows), chosen)
    if chosen == "eval":
        with store.read() as c:
            found = snapshot.snapshot_contents(c, snapshot.labelled(c, "eval"))
            digest = snapshot.snapshot_digest(found)
            about = testimony_of(c, store.name, _events(found), {"snapshot": "eval", "digest": digest})
        name = f"{name}#eval@{digest[:12]}"
    else:
        if number and not number.partition("@")[0].isdigit():
            raise DataError(f"{name}#{number}: a snapshot is named by its number, as {name}#3.")
        snapshot_id = int(number.partition("@")[0]) if number else snapshot.take(store)
        with store.read() as c:
            digest, found = snapshot.load_snapshot(c, snapshot_id, store.name)
            about = testimony_of(c, store.name, _events(found), {"snapshot": snapshot_id, "digest": digest})
        if not digest.startswith(wanted := number.partition("@")[2]):
            raise DataError(f"{name}: snapshot {snapshot_id} of this store is not @{wanted} but @{digest[:12]}.")
        name = f"{name}#{snapshot_id}@{digest[:12]}"
    read = {"pairs": _pairs, "judgements": _judgements, "demonstrations": _demonstrations, "prompts": _asked}
    rows = read[kind](found)
    if not rows:
        raise DataError(f"{hidden(store.name)}: {_NONE[kind]}")
    return _as_parts(name, rows, digest, chosen, about)


_NONE = {
    "pairs": "nobody has preferred an answer yet, so there is nothing to learn from. `prefiere serve` asks people.",
    "judgements": "nobody has voted yet, so there is nothing to learn from. `prefiere serve` asks people.",
    "prompts": "nobody has voted on a prompt of this snapshot.",
    "demonstrations": "no ideal answers in it (key E on the page). `votes export` writes the preferred ones.",
}


def _events(found: list[dict[str, Any]]) -> set[int]:
    """The ids of the votes that rows rest on."""
    return {event for f in found for event in f["row"].event_ids}


def _as_parts(name: str, rows: Numbered, digest: str, split: str, about: dict[str, Any] | None = None) -> Parts:
    def again() -> Iterator[tuple[int, dict[str, Any]]]:
        yield from rows

    return Parts((Part(name, again, lambda: digest, about=about),), split, ("train", "eval"))


def _said(prompt_: Any, text: Any) -> Any:
    """An answer in the form of its prompt: text after text, a message after messages."""
    return [{"role": "assistant", "content": text}] if isinstance(prompt_, list) and isinstance(text, str) else text


def _tools(found: dict[str, Any]) -> dict[str, Any]:
    return {"tools": found["tools"]} if found["tools"] else {}


def _pairs(found: list[dict[str, Any]]) -> Numbered:
    rows = []
    for f in found:
        if f["row"].label is not None:
            texts = {k: _said(f["prompt"], f[k]) for k in ("chosen", "rejected")}
            weights = {"soft_label": f["row"].label, "weight": f["row"].weight}
            rows.append((f["row"].pair_id, {"prompt": f["prompt"], **texts, **weights, **_tools(f)}))
    return rows


def _judgements(found: list[dict[str, Any]]) -> Numbered:
    """Both answers of a pair (two bad ones are both undesirable), and each ideal once. A tie says nothing here."""
    rows, ideals = [], set[int]()
    for f in found:
        row = f["row"]
        sides = [("chosen", True), ("rejected", False)]
        if row.ideal:
            sides = [] if row.chosen_id in ideals else sides[:1]
            ideals.add(row.chosen_id)
        elif row.label is None:
            sides = [("chosen", False), ("rejected", False)]
        elif row.label == 0.5:
            sides = []
        for side, good in sides:
            said = {"completion": _said(f["prompt"], f[side]), "label": good, "weight": row.weight}
            rows.append((row.pair_id, {"prompt": f["prompt"], **said, **_tools(f)}))
    return rows


def _demonstrations(found: list[dict[str, Any]]) -> Numbered:
    ideals = {f["row"].chosen_id: f for f in found if f["row"].ideal}
    return [
        (f["row"].pair_id, {"prompt": f["prompt"], "completion": _said(f["prompt"], f["chosen"]), **_tools(f)})
        for f in ideals.values()
    ]


def _asked(found: list[dict[str, Any]]) -> Numbered:
    """The prompt of each pair of a snapshot, under the pair's number: where the pair itself was read."""
    rows = {f["row"].pair_id: {"prompt": f["prompt"], **_tools(f)} for f in found}
    return list(rows.items())


def _prompts(c: sa.Connection) -> Numbered:
    rows = c.execute(sa.select(prompt.c.id, prompt.c.content, prompt.c.tools).order_by(prompt.c.id))
    return [(r.id, {"prompt": r.content, **({"tools": r.tools} if r.tools else {})}) for r in rows]


def _comparisons(c: sa.Connection, split: str) -> Numbered:
    """Each vote in force with its person's pseudonym, its time and its strength."""
    purpose = "ask" if split == "train" else "eval"
    names = {r.id: r.pseudonym for r in c.execute(sa.select(person.c.id, person.c.pseudonym))}
    a, b = answer.alias(), answer.alias()
    texts = {
        r.id: r
        for r in c.execute(
            sa.select(pair.c.id, prompt.c.content, prompt.c.tools, a.c.content.label("a"), b.c.content.label("b"))
            .join(prompt, prompt.c.id == pair.c.prompt_id)
            .join(a, a.c.id == pair.c.a_id)
            .join(b, b.c.id == pair.c.b_id)
            .where(pair.c.purpose == purpose)
        )
    }
    rows = []
    for v in in_force(c):
        if v.pair_id not in texts:
            continue
        t = texts[v.pair_id]
        row = {"prompt": t.content, "answer_a": _said(t.content, t.a), "answer_b": _said(t.content, t.b)}
        row |= {"preference": "both_bad" if v.both_bad else v.side}
        row |= {"strength": abs(v.score) / 3} if v.score else {}
        row |= {"annotator": names[v.person_id], "created_at": schema.iso(v.at)}
        rows.append((v.pair_id, row | ({"tools": t.tools} if t.tools else {})))
    return rows
