"""Reading the account of the data (data.json), which may come from a stranger: its parts, counts, and places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefiere.doctor.remedies import Remedy

Account = Mapping[str, Any]

CLEAN = Remedy("`prefiere data DATA --clean out.jsonl`, which writes the data without them")


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


def sources_in(part: Account) -> tuple[str, ...]:
    """Where what a part counts was read: ``file:line`` of the first ones."""
    listed = part.get("sources")
    return tuple(map(str, listed)) if isinstance(listed, list) else ()
