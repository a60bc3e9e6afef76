"""What a report says around figures and findings, in the language that is spoken: the tables in words/."""

from __future__ import annotations

from prefiere.asked.columns import spoken_column
from prefiere.asked.language import sentence_of, tongue, words
from prefiere.doctor.series import Level
from prefiere.doctor.words import interval
from prefiere.methods import METHODS
from prefiere.metrics import Column


def phrase(key: str, /, **values: object) -> str:
    """A sentence of the report's table, its braces filled in."""
    return sentence_of("prefiere.report.words", key, tongue(), values)


def method_title(name: str) -> str:
    """A method's name on a page: the table's, else what its row says; one that this version does not have is called as
    it is."""
    row = METHODS.get(name)
    return words("prefiere.report.words", tongue()).get(f"method.{name}", row.title if row is not None else name)


def told_column(column: Column) -> Column:
    """A row of the table of metrics in the language that is spoken."""
    return spoken_column(column, tongue())


def told_interval(level: Level, key: str = "") -> str:
    """``0.41 (0.36 to 0.46)`` in the language that is spoken."""
    return interval(level, key).within(tongue())
