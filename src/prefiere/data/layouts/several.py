"""Several answers to one prompt with a rank or a score each, under any names: UltraFeedback, distilabel, ...

Recognised from the columns themselves: a list of objects that each hold a text and a number, or a list of texts
beside a list of as many numbers. The name of the numbers says whether the lowest is the best (ranks) or the highest
(scores); numbers under another name are not taken for either, nor is a "ranking", which may be the places of the
answers in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from prefiere.asked.language import count_of, in_words
from prefiere.data.dialogues import settle
from prefiere.data.layouts.columns import Layout, Native, Ranking, RowMap
from prefiere.data.layouts.names import words_of
from prefiere.data.layouts.two_answers import TEXTS, asked_of, context_of, holds, is_number
from prefiere.data.messages import is_messages, text
from prefiere.data.values import BadRow, finite_number, need, tools

SEVERAL = "several answers, rated"
_RANKS = {"rank", "ranks"}
_SCORES = {"score", "scores", "rating", "ratings", "reward", "rewards"}
_WORDS = {*TEXTS, *(f"{w}s" for w in TEXTS), "replies", "summaries"}

_Rated: TypeAlias = Callable[[RowMap], list[tuple[Any, Any]]]


def rated(rows: Sequence[RowMap]) -> Layout | None:
    """The layout of rows with several rated answers, made of their own columns; None for others."""
    columns = list(dict.fromkeys(str(k) for row in rows for k in row))
    for column in (c for c in columns if set(words_of(c)) & _WORDS):
        made = _of_objects(column, rows) or _of_lists(column, columns, rows)
        if made is not None:
            fields, numbers, read = made
            asked = asked_of(columns, rows, fields)
            return None if asked is None else _layout(asked, fields, numbers, read)
    return None


def _of_objects(column: str, rows: Sequence[RowMap]) -> tuple[tuple[str, ...], str, _Rated] | None:
    """The fields, the name of the numbers, and what reads (answer, number) of each answer: objects in one column."""
    found = [row[column] for row in rows if _are(row.get(column), Mapping) and not is_messages(row[column])]
    entries: list[Mapping[str, Any]] = [entry for entries in found for entry in entries]
    if 2 * len(found) < len(rows) or not entries:
        return None
    keys = [str(k) for k in entries[0]]
    texts = [k for k in keys if set(words_of(k)) & set(TEXTS) and holds(entries, k, _is_answer)]
    numbers = [k for k in keys if _is_rating(k) and holds(entries, k, is_number)]
    numbers = [k for k in numbers if "overall" in words_of(k)] or numbers
    if not texts or len(numbers) != 1:
        return None
    said, number = min(texts, key=lambda k: min(TEXTS.index(w) for w in words_of(k) if w in TEXTS)), numbers[0]

    def read(row: RowMap) -> list[tuple[Any, Any]]:
        return [(need(entry, said), need(entry, number)) for entry in need(row, column)]

    return (column,), number, read


def _of_lists(
    column: str, columns: Sequence[str], rows: Sequence[RowMap]
) -> tuple[tuple[str, ...], str, _Rated] | None:
    """The same of a list of texts and a list of as many numbers."""
    if not holds(rows, column, lambda v: _are(v, str | list) and all(map(_is_answer, v))):
        return None
    beside = [
        c
        for c in columns
        if _is_rating(c) and holds(rows, c, lambda v: isinstance(v, list) and bool(v) and all(map(is_number, v)))
    ]
    if len(beside) != 1:
        return None
    numbers = beside[0]

    def read(row: RowMap) -> list[tuple[Any, Any]]:
        answers, values = need(row, column), need(row, numbers)
        if len(answers) != len(values):
            what = f"{count_of(len(answers), 'answer')}, and {count_of(len(values), 'number')} in {numbers}"
            raise BadRow(column, "not a number for each answer", what)
        return list(zip(answers, values, strict=True))

    return (column, numbers), numbers, read


def _layout(asked: str, fields: tuple[str, ...], numbers: str, read: _Rated) -> Layout:
    context = context_of(asked)
    sign = 1 if set(words_of(numbers)) & _RANKS else -1

    def parse(row: RowMap) -> Iterator[Native]:
        prompt, found = context(row), read(row)
        ranked = []
        for answer, value in found:
            rating = finite_number(value, numbers)
            if rating is None:
                raise BadRow(numbers, "unanswered", "an answer has no rating", content=True)
            settled, said, _ = settle(prompt, text(answer, fields[0]), text(answer, fields[0]))
            ranked.append((sign * rating, said))
        if len(ranked) < 2:
            raise BadRow(fields[0], "fewer than two answers", content=True)
        yield Ranking(prompt=settled, answers=tuple(sorted(ranked, key=lambda r: r[0])), tools=tools(row))

    remark = in_words("data.lower_better" if sign > 0 else "data.higher_better", columns=numbers)
    return Layout(SEVERAL, "comparisons", (asked, *fields), parse, remark=remark)


def _are(value: Any, kind: Any) -> bool:
    """Whether this is a list of two and more of a kind."""
    return isinstance(value, list) and len(value) > 1 and all(isinstance(v, kind) for v in value)


def _is_answer(value: Any) -> bool:
    return isinstance(value, str) or is_messages(value)


def _is_rating(column: str) -> bool:
    return bool(set(words_of(column)) & (_RANKS | _SCORES))
