"""Reading the account of the data (data.json), which may come from a stranger: its parts, counts, and places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefiere.asked.language import Worded
from prefiere.doctor.case import Finding, FirstLines, Severity
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.series import Level
from prefiere.doctor.words import line

Account = Mapping[str, Any]

CLEAN = Remedy("`prefiere data DATA --clean out.jsonl`, which writes the data without them")
_STAY = 0.9
"""Share of the records that a fault is in, up to which enough stay where these are left out."""


def number_in(account: Account, *path: str) -> float:
    """A count or a share at a place of the account; 0 where there is none, or what may come from a stranger counts
    nothing (NaN, infinity, less than nothing)."""
    found = part_of(account, *path[:-1]).get(path[-1])
    if not isinstance(found, int | float) or isinstance(found, bool):
        return 0.0
    return float(found) if 0 <= found < 2**63 else 0.0


def part_of(account: Account, *path: str) -> Account:
    """What stands at a place of the account; empty where that is no table."""
    found: Any = account
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def level_in(part: Account) -> Level | None:
    """A share with its interval (``right``, ``low``, ``high``) of ``n``; None where it is none, or no such share."""
    right, low, high, n = (number_in(part, k) for k in ("right", "low", "high", "n"))
    nearly = 1e-9  # a share of all of them may have an end that is rounded below it
    known = n >= 1 and low - nearly <= right <= high + nearly and high <= 1 + nearly
    return Level(right, low, high, int(n)) if known else None


def sources_in(part: Account) -> tuple[str, ...]:
    """Where what a part counts was read: ``file:line`` of the first ones, and how many there are."""
    listed = part.get("sources")
    return FirstLines(map(str, listed), int(number_in(part, "count"))) if isinstance(listed, list) and listed else ()


def records_in(account: Account) -> float:
    """How many records were looked at."""
    return number_in(account, "audit", "faults", "records")


def shared(account: Account, name: str) -> tuple[float, float, tuple[str, ...]]:
    """Count, share of the records, first sources of what was counted."""
    part = part_of(account, "audit", "faults", name)
    count, records = number_in(part, "count"), records_in(account)
    return count, count / records if records else 0.0, sources_in(part)


def leaving_out(share: float) -> tuple[Remedy, ...]:
    """To leave out what is in a share of the records, where enough stay."""
    return (CLEAN,) if share < _STAY else ()


def share_seen(count: float, share: float, what: str, **values: str | Worded) -> Worded:
    """A line of what was seen: a count, and the share that it is."""
    return line(what, n=f"{count:,.0f}", share=f"{100 * share:.0f}%", **values)


def found_in_data(
    key: str, title: str, severity: Severity, meaning: str, seen: tuple[Worded, ...], advice: tuple[Remedy, ...],
    lines: tuple[str, ...] = (), said_as: str = "", **values: str,
) -> Finding:  # fmt: skip
    """A finding of what was counted in the data, which is a cause."""
    return Finding(key, title, severity, meaning, seen, advice, True, lines=lines, values=values, said_as=said_as)
