"""Who said so: what a run folder records of the votes that it learnt from, and of the blind comparison after it.

Reports read the folder alone, so that the record holds all that they show. People stand in it by their pseudonyms.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from prefiere.feedback import schema, snapshot
from prefiere.feedback.figures import agreement_of
from prefiere.feedback.schema import answer, model, pair, person
from prefiere.feedback.store import Store, hidden
from prefiere.feedback.votes import Vote, in_force
from prefiere.stats import clustered_mean, clusters_won, sign_test


def testimony_of(c: sa.Connection, name: str, events: set[int], about: dict[str, Any]) -> dict[str, Any]:
    """What data.json says of the votes behind a run. events: the ids of the votes that its rows rest on.

    Holds votes, pairs, people (pseudonym, kind, votes, eta: how often their vote names the better answer), ties and
    both_bad (counts), ideals, agreement on pairs with two votes or more (doubled, share, low, high), and who was
    left_out.
    """
    everybody = in_force(c, counted=False)
    used = [v for v in everybody if v.event_id in events]
    _, trust = snapshot.reliable(c, [v for v in everybody if v.event_id in events or v.purpose != "ask"])
    rows = c.execute(sa.select(person).order_by(person.c.id)).mappings().all()
    given = Counter(v.person_id for v in used)
    human = [v for v in used if not v.judge]
    share = agreement_of(human)["share"]
    doubled = sum(n > 1 for n in Counter(v.pair_id for v in human).values())
    out = {
        r["pseudonym"]: "set aside" if r["set_aside_at"] is not None else "left out"
        for r in rows
        if r["id"] not in given and r["forgotten_at"] is None and (r["set_aside_at"] or r["left_out_at"])
    }
    return {
        "store": hidden(name),
        **about,
        "votes": len(used),
        "pairs": len({v.pair_id for v in used}),
        "people": [
            {"name": r["pseudonym"], "kind": r["kind"], "votes": given[r["id"]], "eta": trust.eta.get(r["id"])}
            for r in rows
            if r["id"] in given
        ],
        "ties": sum(v.side == "tie" for v in used),
        "both_bad": sum(v.both_bad for v in used),
        "ideals": sum(v.ideal_id is not None for v in used),
        "agreement": {"doubled": doubled, "share": share.value, "low": share.low, "high": share.high},
        "left_out": out,
        "skips": _skips(c),
    }


def _skips(c: sa.Connection) -> int:
    """How often people skipped a pair of those that are learnt from."""
    lease = schema.lease
    count = sa.select(sa.func.count()).select_from(lease).join(pair, pair.c.id == lease.c.pair_id)
    return int(c.execute(count.where(lease.c.state == "skipped", pair.c.purpose == "ask")).scalar_one())


def blind_comparison(store: Store, run: Path) -> dict[str, Any] | None:
    """What people said of a run's answers beside its former self's, without knowing which is which; None where nobody
    has.

    Holds before, after (models), won, lost, tied (votes of people), share of the decided ones with its interval low and
    high, p of the sign test (both by prompt: several votes on one are no independent ones), and the names of who voted.
    """
    b, before, after = answer.alias(), model.alias(), model.alias()
    a = answer.alias()
    mine = (
        sa.select(pair.c.id, pair.c.prompt_id, before.c.label.label("before"), after.c.label.label("after"))
        .join(a, a.c.id == pair.c.a_id).join(before, before.c.id == a.c.model_id)
        .join(b, b.c.id == pair.c.b_id).join(after, after.c.id == b.c.model_id)
        .where(pair.c.purpose == "compare", after.c.run == str(run.resolve()))
    )  # fmt: skip
    with store.read() as c:
        pairs = {row.id: row for row in c.execute(mine)}
        said: Sequence[Vote] = [v for v in in_force(c) if v.pair_id in pairs and not v.judge]
        names = {r.id: r.pseudonym for r in c.execute(sa.select(person.c.id, person.c.pseudonym))}
    if not said:
        return None
    won, lost = (sum(v.side == side for v in said) for side in ("b", "a"))
    signs = [(v.side == "b") - (v.side == "a") for v in said]
    prompts = [pairs[v.pair_id].prompt_id for v in said]
    share = clustered_mean([(1 + x) / 2 for x in signs], prompts, weights=[abs(x) for x in signs], share=True)
    models = pairs[said[0].pair_id]
    return {
        "store": hidden(store.name), "at": schema.iso(time.time()), "before": models.before, "after": models.after,
        "pairs": len({v.pair_id for v in said}), "won": won, "lost": lost, "tied": len(said) - won - lost,
        "share": share.mean, "low": share.low, "high": share.high,
        "p": sign_test(*clusters_won(signs, prompts)), "people": sorted({names[v.person_id] for v in said}),
    }  # fmt: skip
