"""Prompts looked up where their records were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefiere.data import formats
from prefiere.data.schema import Text
from prefiere.data.splits import ReadFor


def prompts_at(
    sources: Sequence[str],
    data: str,
    *,
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    purpose: ReadFor = "train",
) -> dict[str, Text]:
    """The prompts of the records that were read at these places (``file:line``), in their order."""
    wanted = set(sources)
    found: dict[str, Text] = {}
    for record in (
        formats.read(data, kind="prompts", split=split, columns=columns, on_bad="drop", purpose=purpose)
        if wanted
        else ()
    ):
        if record.source in wanted:
            found[record.source] = record.prompt
            if len(found) == len(wanted):
                break
    return {s: found[s] for s in sources if s in found}
