"""What the votes so far are worth: the figures of the board and of ``prefiere votes``. Nothing is changed here."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from prefiere.feedback import schema, snapshot
from prefiere.feedback.rounds import learning
from prefiere.feedback.schema import answer, model, pair, person
from prefiere.feedback.science import agreement, judges
from prefiere.feedback.science.active import Brought, Stopping
from prefiere.feedback.science.agreement import Agreement
from prefiere.feedback.science.ranking import Game, Rank, fit_bradley_terry
from prefiere.feedback.store import Store
from prefiere.feedback.votes import Vote, in_force
from prefiere.stats import Estimate, clustered_mean, wilson

PUBLISHED = (0.63, 0.77)
"""How often two people elsewhere prefer the same answer, in published data sets."""


@dataclass(frozen=True)
class PersonFigures:
    """One person's (or judge's) votes: how many, how fast, how reliable, and how they do on gold."""

    pseudonym: str
    kind: str
    role: str
    votes: int
    seconds: float | None
    eta: float | None
    eta_low: float | None
    eta_high: float | None
    gold_right: int
    gold: int
    left: float | None
    fast: int
    state: str


@dataclass(frozen=True)
class Figures:
    """Everything that the board shows. Shares are in [0, 1]; nan where there is too little."""

    votes: int
    asked: int
    open_slots: int
    last_hour: int
    seconds: float | None
    ties: int
    both_bad: int
    agreement: dict[str, Agreement]
    doubled: int
    left: tuple[float, float, float]
    longer: Estimate
    people: list[PersonFigures]
    ranking: list[Rank]
    ranking_by_length: list[Rank]
    judged: dict[str, judges.Corrected]
    names_its_model: int
    curve: Stopping
    order: Brought | None


@dataclass(frozen=True, slots=True)
class _Pair:
    prompt_id: int
    words: int
    longer: float  # log length of a less that of b
    model_a: int | None
    model_b: int | None


def floor_ms(words: int) -> int:
    """Milliseconds below which nobody has read a pair of so many words: such a vote is marked, never refused."""
    return min(8000, 1000 + 30 * words)


def figures(store: Store, now: float) -> Figures:
    """Compute all of it from the votes in force."""
    with store.read() as c:
        votes, everybody = in_force(c), in_force(c, counted=False)
        pairs, labels, named = _pairs(c)
        rows = c.execute(sa.select(person).order_by(person.c.id)).mappings().all()
        gold = {r.pair_id: r.side for r in c.execute(sa.select(schema.gold.c.pair_id, schema.gold.c.side))}
        opened = int(c.execute(sa.select(sa.func.coalesce(sa.func.sum(pair.c.open), 0))).scalar_one())
        _, trust = snapshot.reliable(c, everybody)
        learnt, brought = learning.curve(c, votes), learning.brought(c, votes)
    human = [v for v in votes if not v.judge]
    decided = [v for v in human if v.side in ("a", "b")]
    left = sum((v.side == "a") != v.swapped for v in decided)
    longer = [(1.0 if (v.score < 0) == (pairs[v.pair_id].longer > 0) else 0.0, v.prompt_id)
              for v in decided if pairs[v.pair_id].longer]  # fmt: skip
    of_person: dict[int, list[Vote]] = defaultdict(list)
    for v in everybody:
        of_person[v.person_id].append(v)
    games = _games(human, pairs, labels)
    return Figures(
        votes=len(human),
        asked=len({v.pair_id for v in human}),
        open_slots=opened,
        last_hour=sum(v.at > now - 3600 and not v.read_in for v in human),
        seconds=_median([v.ms for v in human]),
        ties=sum(v.side == "tie" for v in human),
        both_bad=sum(v.both_bad for v in human),
        agreement=agreement_of(human),
        doubled=sum(len(s) > 1 for s in _by_pair(human).values()),
        left=(left / len(decided) if decided else float("nan"), *wilson(left, len(decided))),
        longer=clustered_mean([x for x, _ in longer], [p for _, p in longer], share=True),
        people=[_person(r, of_person[r["id"]], pairs, gold, trust) for r in rows],
        ranking=fit_bradley_terry(games),
        ranking_by_length=fit_bradley_terry(games, by_length=True),
        judged=_judged(votes, pairs, {r["id"]: r["pseudonym"] for r in rows}),
        names_its_model=named,
        curve=learnt,
        order=brought,
    )


def _pairs(c: sa.Connection) -> tuple[dict[int, _Pair], dict[int, str], int]:
    """Every pair's lengths and models, the models' labels, and how many answers name their own model."""
    labels = {r.id: r.label for r in c.execute(sa.select(model.c.id, model.c.label))}
    texts, named = {}, 0
    for r in c.execute(sa.select(answer.c.id, answer.c.content, answer.c.model_id)):
        text = r.content if isinstance(r.content, str) else " ".join(str(m["content"]) for m in r.content)
        texts[r.id] = (len(text.split()), len(text), r.model_id)
        label = labels.get(r.model_id, "").rsplit("/", 1)[-1]
        named += len(label) > 2 and label.lower() in text.lower()
    made = {}
    for p in c.execute(sa.select(pair.c.id, pair.c.prompt_id, pair.c.a_id, pair.c.b_id)):
        (words_a, chars_a, model_a), (words_b, chars_b, model_b) = texts[p.a_id], texts[p.b_id]
        longer = float(np.log((chars_a + 1) / (chars_b + 1)))
        made[p.id] = _Pair(p.prompt_id, words_a + words_b, longer, model_a, model_b)
    return made, labels, named


def _median(ms: Sequence[int | None]) -> float | None:
    known = [m / 1000 for m in ms if m is not None]
    return statistics.median(known) if known else None


def _by_pair(votes: Sequence[Vote]) -> dict[int, dict[int, Vote]]:
    found: dict[int, dict[int, Vote]] = defaultdict(dict)
    for v in votes:
        found[v.pair_id][v.person_id] = v
    return found


def agreement_of(votes: Sequence[Vote]) -> dict[str, Agreement]:
    """Share of equal sides, Cohen's and Fleiss' kappa on sides, Krippendorff's alpha on -3..3 (not of two bad ones)."""
    doubled = {p: s for p, s in _by_pair(votes).items() if len(s) > 1}
    sides: Any = {p: {k: ("a", "b", "tie", "bad").index(v.side) for k, v in s.items()} for p, s in doubled.items()}
    scores: Any = {p: {k: v.score for k, v in s.items() if not v.both_bad} for p, s in doubled.items()}
    prompts: Any = {p: next(iter(s.values())).prompt_id for p, s in doubled.items()}
    return {
        "share": agreement.bootstrap(sides, prompts, agreement.agreement_share),
        "cohen": agreement.bootstrap(sides, prompts, agreement.cohen_mean),
        "fleiss": agreement.bootstrap(sides, prompts, agreement.fleiss),
        "krippendorff": agreement.bootstrap(scores, prompts, agreement.krippendorff),
    }


def _person(row: Any, votes: list[Vote], pairs: dict[int, _Pair], gold: dict[int, str], trust: Any) -> PersonFigures:
    decided = [v for v in votes if v.side in ("a", "b")]
    on_gold = [v for v in votes if v.pair_id in gold]
    eta = trust.eta.get(row["id"])
    low, high = trust.interval(row["id"]) if eta is not None else (None, None)
    states = ("forgotten_at", "left_out_at", "set_aside_at")
    state = next((s.removesuffix("_at").replace("_", " ") for s in states if row[s] is not None), "counts")
    return PersonFigures(
        pseudonym=row["pseudonym"], kind=row["kind"], role=row["role"],
        votes=len(votes) if row["forgotten_votes"] is None else row["forgotten_votes"],
        seconds=_median([v.ms for v in votes]), eta=eta, eta_low=low, eta_high=high,
        gold_right=sum(v.side == gold[v.pair_id] for v in on_gold), gold=len(on_gold),
        left=sum((v.side == "a") != v.swapped for v in decided) / len(decided) if decided else None,
        fast=sum(v.ms is not None and v.ms < floor_ms(pairs[v.pair_id].words) for v in votes), state=state,
    )  # fmt: skip


def _games(votes: Sequence[Vote], pairs: dict[int, _Pair], labels: dict[int, str]) -> list[Game]:
    games = []
    for v in votes:
        p = pairs[v.pair_id]
        if p.model_a is not None and p.model_b is not None and p.model_a != p.model_b:
            won = 1.0 if v.side == "a" else 0.0 if v.side == "b" else 0.5
            games.append(Game(labels[p.model_a], labels[p.model_b], won, p.prompt_id, p.longer))
    return games


def _judged(votes: Sequence[Vote], pairs: dict[int, _Pair], names: dict[int, str]) -> dict[str, judges.Corrected]:
    """Of each judge: how often side b wins the comparisons of two models, corrected by the people's votes on them."""

    def value(v: Vote) -> float:
        return {"b": 1.0, "a": 0.0}.get(v.side, 0.5)

    compared = [v for v in votes if v.purpose == "compare"]
    people = defaultdict(list)
    for v in compared:
        if not v.judge:
            people[v.pair_id].append(value(v))
    found = {}
    for judge in {v.person_id for v in compared if v.judge}:
        said = {v.pair_id: value(v) for v in compared if v.person_id == judge}
        both = [p for p in said if p in people]
        if len(both) >= judges.FEWEST_JUDGED:
            found[names[judge]] = judges.corrected(
                [float(np.mean(people[p])) for p in both], [said[p] for p in both],
                [f for p, f in said.items() if p not in people],
            )  # fmt: skip
    return found
