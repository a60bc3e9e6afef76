"""The table of metrics in another language: what each column is called, its unit, its meaning.

The table itself is English; the other words stand by the English ones (`words/metrics_es.yaml`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prefiere.asked.language import TONGUES, Tongue, Worded, other_words
from prefiere.metrics import COLUMNS, OF_ONE, Column

_TEXTS = ("words", "unit", "axis", "title", "meaning")


def phrases(spoken: Tongue) -> Mapping[str, str]:
    """From the table's English texts to those of another language."""
    return other_words("prefiere.asked.words", "metrics", spoken)


def spoken_column(column: Column, spoken: Tongue) -> Column:
    """A row of the table in a language; what the table does not have (another version's, a page's own) stays as it
    is."""
    if spoken == "en":
        return column
    known = phrases(spoken)
    told = {name: known.get(text, text) for name in _TEXTS if (text := getattr(column, name))}
    if (of := OF_ONE.fullmatch(column.name)) is not None:
        general = next(c for c in COLUMNS if c.name == f"rewards/NAME/{of[2]}")
        told["words"] = known[general.words].replace("NAME", of[1])
    return replace(column, **told)


def column_said(column: Column) -> tuple[Worded, Worded]:
    """What a column is called within a sentence, and its unit, in every language."""
    rows = [spoken_column(column, spoken) for spoken in TONGUES]
    return Worded(tuple(row.words for row in rows)), Worded(tuple(row.unit for row in rows))
