"""Prompts, and the columns beside them, looked up where their records were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefiere.data import formats, sources
from prefiere.data.schema import Kind, Text
from prefiere.data.splits import ReadFor


def prompts_at(
    places: Sequence[str],
    data: str,
    *,
    kind: Kind = "prompts",
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    purpose: ReadFor = "train",
) -> dict[str, Text]:
    """The prompts of the records that were read at these places (``file:line``), in their order.

    kind: what they were read as, which chooses among splits where none is named.
    """
    wanted = set(places)
    found: dict[str, Text] = {}
    for record in (
        formats.read(data, kind="prompts", split=split, columns=columns, on_bad="drop", purpose=purpose, split_for=kind)
        if wanted
        else ()
    ):
        if record.source in wanted:
            found[record.source] = record.prompt
            if len(found) == len(wanted):
                break
    return {s: found[s] for s in places if s in found}


def columns_at(
    places: Sequence[str], data: str, *, kind: Kind = "prompts", split: str | None = None, purpose: ReadFor = "train"
) -> dict[str, Mapping[str, Any]]:
    """The rows, under the data's own names of columns, of the records that were read at these places. kind: see
    `prompts_at`."""
    wanted, found = set(places), dict[str, Mapping[str, Any]]()
    for part in sources.find(data, kind, split, purpose).parts if wanted else ():
        for line, row in part.rows():
            if (place := part.at(line)) in wanted and isinstance(row, Mapping):
                found[place] = row
    return found
