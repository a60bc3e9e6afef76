"""What became of data, in words: of rows that were read, of examples that were made of them.

The counts are facts (data.json, and the cache of tokens); their words are chosen when they are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from prefiere.asked.language import in_words, other_words, tongue


def counted(read: Mapping[str, Any]) -> str:
    """Rows read, records kept, and dropped or changed ones by reason, as `Counts.to_dict` has them."""
    said = [in_words(f"account.{what}", n=f"{read[what]:,}") for what in ("read", "kept")]
    for what in ("dropped", "changed"):
        of = Counter(read[what]).most_common()
        said += [in_words(f"account.{what}", n=f"{n:,}", why=said_reason(why)) for why, n in of]
    return ", ".join(said)


def said_reason(why: str) -> str:
    """Why a row was dropped or changed (words/reasons_es.yaml); one that no table has stays in English."""
    return other_words("prefiere.asked.words", "reasons", tongue()).get(why, why)


def unread(read: Mapping[str, Any]) -> list[str]:
    """What of a source is not read, as `Records.describe` has it, a line for each kind."""
    names = {key: read[key] for key in ("unread_columns", "unread_files") if read[key]}
    return [*(in_words(f"account.{key}", names=", ".join(of)) for key, of in names.items()), *read["remarks"]]


def encoded(tokens: Mapping[str, Any]) -> list[str]:
    """What became of examples, as `EncodeReport.to_dict` has it: their number, then a line for each thing that
    happened."""
    totals = {"examples": tokens["examples"], "kept": tokens["groups"], "tokens": tokens["tokens"]}
    said = [in_words("account.examples", **{name: f"{n:,}" for name, n in totals.items()})]
    for what, sources in happened(tokens):
        said.append(in_words("account.first", what=what, sources=", ".join(sources[:3])))
    return [*said, *tokens["notes"]]


def happened(tokens: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """How many examples something happened to and what, with the first of them."""
    found = {name: of for name, of in tokens.items() if isinstance(of, Mapping) and of["count"]}
    return [(f"{of['count']:,} {in_words(f'account.of.{name}')}", of["sources"]) for name, of in found.items()]
