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
    """Why a row was dropped or changed, or what was done with it (words/reasons_es.yaml); what no table has stays in
    English."""
    return other_words("prefiere.asked.words", "reasons", tongue()).get(why, why)


def unread(read: Mapping[str, Any]) -> list[str]:
    """What of a source is not read, as `Records.describe` has it, a line for each kind."""
    names = {key: read[key] for key in ("unread_columns", "unread_files") if read[key]}
    return [*(in_words(f"account.{key}", names=", ".join(of)) for key, of in names.items()), *read["remarks"]]


def encoded(tokens: Mapping[str, Any]) -> list[str]:
    """What became of examples, as `EncodeReport.to_dict` has it: their number, then a line for each thing that
    happened."""
    kept = in_words("account.kept", n=f"{tokens['groups']:,}")
    said = [in_words("account.examples", n=f"{tokens['examples']:,}", kept=kept, tokens=f"{tokens['tokens']:,}")]
    for what, sources in happened(tokens):
        said.append(in_words("account.first", what=what, sources=", ".join(sources[:3])))
    return [*said, *notes_said(tokens)]


def notes_said(tokens: Mapping[str, Any]) -> list[str]:
    """What is to know besides of how examples were written, as `EncodeReport.to_dict` has it."""
    return [said_reason(note) for note in tokens["notes"]]


def made(counts: Mapping[str, int]) -> str:
    """What became of the pairs and votes that were added to a store, each as it is counted."""
    return ", ".join(in_words(f"made.{what}", n=f"{n:,}") for what, n in counts.items())


def happened(tokens: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """How many examples something happened to and what, with the first of them."""
    found = {name: of for name, of in tokens.items() if isinstance(of, Mapping) and of["count"]}
    return [(in_words(f"account.of.{name}", n=f"{of['count']:,}"), of["sources"]) for name, of in found.items()]
