"""Who said so: the votes that a run learnt from, and what people said blind of its answers, by its folder alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefiere.report.say import phrase
from prefiere.run import Run
from prefiere.stats import float_of

MOST_PEOPLE = 50
"""People shown of a run, those with most votes; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Testimony:
    """What the report shows: facts (name, value), people (pseudonym, votes, how often right), and two sentences."""

    facts: tuple[tuple[str, str], ...]
    people: tuple[tuple[str, str, str], ...]
    left_out: str
    blind: str


def who_said_so(run: Run) -> Testimony | None:
    """What a run's folder records of votes; None where it did not learn from a store and nobody has compared it."""
    train = run.data.get("train")
    votes = train.get("votes") if isinstance(train, Mapping) else None
    blind = run.blind
    if not isinstance(votes, Mapping):
        votes = {}
    if not votes and not blind:
        return None
    people = sorted(_mappings(votes.get("people")), key=lambda p: -_count(p.get("votes")))
    return Testimony(tuple(_facts(votes)), tuple(_rows(people)), _left_out(votes), _blind(blind) if blind else "")


def _facts(votes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not votes:
        return
    number = _count(votes.get("votes"))
    yield phrase("votes.store"), str(votes.get("store", ""))
    yield phrase("votes.snapshot"), f"{votes.get('snapshot', '')} @ {str(votes.get('digest', ''))[:12]}"
    yield phrase("votes.votes"), phrase("votes.on_pairs", votes=f"{number:,}", n=f"{_count(votes.get('pairs')):,}")
    kinds = [p.get("kind") for p in _mappings(votes.get("people"))]
    judges = kinds.count("judge")
    persons = f"{len(kinds) - judges:,}"
    yield phrase("votes.people"), phrase("votes.and_judges", persons=persons, n=f"{judges:,}") if judges else persons
    for key in ("ties", "both_bad"):
        share = f" ({_count(votes.get(key)) / number:.0%})" if number else ""
        yield phrase(f"votes.{key}"), f"{_count(votes.get(key)):,}{share}"
    if _count(votes.get("ideals")):
        yield phrase("votes.ideals"), f"{_count(votes['ideals']):,}"
    agreement = votes.get("agreement")
    doubled = _count(agreement.get("doubled")) if isinstance(agreement, Mapping) else 0
    told = phrase("votes.no_agreement")
    if doubled and isinstance(agreement, Mapping):
        share = _share(agreement.get("share"), agreement.get("low"), agreement.get("high"))
        told = phrase("votes.agreed", share=share, n=f"{doubled:,}")
    yield phrase("votes.agreement"), told


def _rows(people: list[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for p in people[:MOST_PEOPLE]:
        name = str(p.get("name", ""))
        who = phrase("votes.judge", name=name) if p.get("kind") == "judge" else name
        yield who, f"{_count(p.get('votes')):,}", _share(p.get("eta"))
    if more := people[MOST_PEOPLE:]:
        yield phrase("votes.more", n=f"{len(more):,}"), f"{sum(_count(p.get('votes')) for p in more):,}", ""


def _left_out(votes: Mapping[str, Any]) -> str:
    """One sentence; empty where nothing was left out."""
    told = []
    out = votes.get("left_out")
    if isinstance(out, Mapping) and out:
        told.append(", ".join(f"{name} ({why})" for name, why in list(out.items())[:MOST_PEOPLE]))
    if skips := _count(votes.get("skips")):
        told.append(phrase("votes.skipped", n=f"{skips:,}"))
    return "; ".join(told)


def _blind(blind: Mapping[str, Any]) -> str:
    won, lost, tied = (_count(blind.get(k)) for k in ("won", "lost", "tied"))
    n = {"won": f"{won:,}", "lost": f"{lost:,}", "tied": f"{tied:,}", "all": f"{won + lost + tied:,}"}
    told = phrase("blind.told", **n)
    who = blind.get("people")
    if isinstance(who, list) and who:
        names = ", ".join(map(str, who[:10]))
        told += " " + phrase("blind.by", who=names)
        told += phrase("blind.more", n=f"{len(who) - 10:,}") if len(who) > 10 else ""
    if won + lost:
        told += phrase("blind.share", share=_share(blind.get("share"), blind.get("low"), blind.get("high")))
        p = blind.get("p")
        told += phrase("blind.sign_test", p=f"{p:.2g}") if isinstance(p, int | float) else ""
    return told + "."


def _share(value: Any, low: Any = None, high: Any = None) -> str:
    """``64% (51 to 75%)``; a dash where nothing was measured."""
    value, low, high = map(float_of, (value, low, high))
    if value is None:
        return "–"
    if low is not None and high is not None:
        between = phrase("interval", low=f"{100 * low:.0f}", high=f"{100 * high:.0f}%")
        return f"{value:.0%} ({between})"
    return f"{value:.0%}"


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []
