"""Two answers side by side and a verdict, under any names: PKU-SafeRLHF, WebGPT, HelpSteer2, AlpacaEval, SHP, ...

Recognised from the columns themselves: two texts whose names differ in the side only, a prompt, and a column that says
which was preferred, or a score for each side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefiere.asked.language import in_words
from prefiere.data.dialogues import settle
from prefiere.data.layouts.columns import Context, Layout, Native, RowMap, given, implicit, instruction, said_by
from prefiere.data.layouts.names import ASKED, Sides, map_to_give, side_by_side, words_of
from prefiere.data.layouts.verdicts import (
    about_verdict,
    full_strength,
    is_strength,
    meaning_of,
    number_of,
    side_word,
)
from prefiere.data.messages import is_messages, message_list, text
from prefiere.data.schema import Comparison, Preference, Prompt, Text
from prefiere.data.values import BadRow, DataError, finite_number, moment, need, tools

TWO_ANSWERS = "two answers and a verdict"
# Names of columns that hold texts, the likeliest first; and of those that hold none.
TEXTS = ("answer", "response", "completion", "output", "generation", "reply", "conversation", "candidate", "summary",
          "option", "ref", "text")  # fmt: skip
_NO_TEXTS = {"model", "name", "id", "score", "rating", "reward", "policy", "lang", "language", "source", "tokens",
             "length", "category", "quotes", "winner", "win", "label"}  # fmt: skip
_SCORES = {"score", "scores", "rating", "reward", "winner", "win", "wins", "votes", "upvotes", "preferred", "better"}
# Words that leave the higher of two scores the better answer's; of others (toxicity, error) the lower may be.
_NEUTRAL = {"overall", "human", "model", "quality", "helpful", "helpfulness", "mean", "average", "avg", "total",
            "final", "gold", "expert", "crowd", "user", "annotator", "judge", "rm", "preference", "is",
            "the"}  # fmt: skip
# Columns under which a prompt of two answers stands besides `ASKED`.
_MORE_ASKED = (
    "context",
    "history",
    "input",
    "messages",
    "conversation",
    "conversations",
    "post",
    "user",
    "text",
    "source",
)


def comparison(
    row: RowMap,
    prompt: Text | None,
    a: Text,
    b: Text,
    preference: Preference,
    *,
    strength: float | None = None,
    annotator: object = None,
    created_at: str | None = None,
) -> Comparison:
    """The comparison in one form (all text, or all messages)."""
    if strength is not None and not 0 < strength <= 1:
        raise BadRow("strength", "wrong type in strength", f"expected at most full strength (1), found {strength:g}")
    prompt, a, b = settle(prompt, a, b)
    return Comparison(
        prompt=prompt,
        answer_a=a,
        answer_b=b,
        preference=preference,
        strength=strength,
        annotator=said_by(annotator),
        created_at=created_at,
        tools=tools(row),
    )


def recognised(rows: Sequence[RowMap]) -> Layout | None:
    """The layout of rows with two answers side by side and a verdict, made of their own columns; None for others."""
    columns = list(dict.fromkeys(str(k) for row in rows for k in row))
    sides = answers_of(columns, rows)
    if sides is None:
        return None
    asked = asked_of(columns, rows, (sides.a, sides.b))
    if asked not in ASKED and all(holds(rows, c, _begins) for c in (sides.a, sides.b)):
        asked = ""  # the conversations begin with it
    if asked is None:
        return None
    pairs = [s for s in side_by_side(columns) if (s.a, s.b) != (sides.a, sides.b)]
    if (said := _verdict_columns(columns, rows, sides, pairs)) is not None:
        return with_verdict(asked, sides, *said)
    scores = [s for s in pairs if set(s.words) & _SCORES and all(holds(rows, c, is_number) for c in (s.a, s.b))]
    return _with_scores(asked, sides, scores) if scores else None


def answers_of(columns: Sequence[str], rows: Sequence[RowMap]) -> Sides | None:
    """The two columns of answers."""

    def rank(sides: Sides) -> tuple[int, int]:
        named = (TEXTS.index(w) for w in sides.words if w in TEXTS)
        return min(named, default=len(TEXTS)), columns.index(sides.a)

    found = [
        s
        for s in side_by_side(columns)
        if (not set(s.words) & _NO_TEXTS or set(s.words) & set(TEXTS) - {"text"})
        and not {"score", "tokens", "quotes", "id"} & set(s.words)
        and all(holds(rows, c, is_text) for c in (s.a, s.b))
    ]
    return min(found, key=rank, default=None)


def asked_of(columns: Sequence[str], rows: Sequence[RowMap], taken: Collection[str]) -> str | None:
    """The column of the prompt, which is none of those that are taken."""
    left = (c for c in (*ASKED, *_MORE_ASKED) if c in columns and c not in taken)
    return next((c for c in left if holds(rows, c, lambda v: is_text(v) or isinstance(v, Mapping))), None)


def _verdict_columns(
    columns: Sequence[str], rows: Sequence[RowMap], sides: Sides, pairs: Sequence[Sides]
) -> tuple[str, str | None] | None:
    """The column that says which answer is preferred, and the one that says how strongly."""
    taken = {sides.a, sides.b, *(c for s in pairs for c in (s.a, s.b))}
    ranked = sorted((rank, c) for c in columns if (rank := about_verdict(c)) is not None and c not in taken)
    found = [c for _, c in ranked if holds(rows, c, _is_verdict)]
    strong = [c for c in found if is_strength(c) and holds(rows, c, is_number)]
    which = [c for c in found if c not in strong]
    if not strong or not which:
        return (found[0], None) if found else None
    numbers = {n for row in rows if (n := number_of(row.get(strong[0]))) is not None}
    if min(numbers) < 0 < max(numbers):  # a scale with a sign says which, unless words do
        spoken = [c for c in which if holds(rows, c, lambda v: side_word(v, sides.one, sides.two) is not None)]
        which = [c for c in spoken if not any(is_number(row.get(c)) for row in rows)]
    return (which[0], strong[0]) if which else (strong[0], None)


def holds(rows: Sequence[RowMap], column: str, what: Callable[[Any], bool]) -> bool:
    """Whether at least half of a column's values are so."""
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and sum(map(what, values)) * 2 >= len(values)


def is_text(value: Any) -> bool:
    """Whether this may be a prompt or an answer: text that is no number, or messages."""
    return (isinstance(value, str) and not is_number(value)) or is_messages(value)


def _begins(value: Any) -> bool:
    """Whether this is a conversation from its beginning, not an answer alone."""
    try:
        return is_messages(value) and message_list(value, "messages")[0].role != "assistant"
    except BadRow:  # named when its row is read
        return False


def is_number(value: Any) -> bool:
    """Whether this is a finite number, also as text."""
    try:
        return not isinstance(value, Mapping | list) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _is_verdict(value: Any) -> bool:
    return is_number(value) or (isinstance(value, str) and len(words_of(value)) <= 40)


def context_of(asked: str) -> Context:
    """How the prompt of this column is read; "": it is what the answers begin with."""
    if not asked:
        return implicit
    return instruction(asked) if asked in ("instruction", "question", "query", "input") else given(asked)


def with_verdict(
    asked: str, sides: Sides, verdict: str, strength: str | None = None, name: str = TWO_ANSWERS
) -> Layout:
    """The layout of these columns. What numbers in the verdict mean is decided from all rows of the source."""
    context = context_of(asked)
    fields = tuple(f for f in (asked, sides.a, sides.b, verdict) if f)
    unread = Layout(name, "comparisons", fields, _prompts(context, sides))

    def decide(rows: Iterable[RowMap], where: str) -> Layout:
        strengths = set[float]()

        def values() -> Iterator[Any]:
            for row in rows:
                if strength is not None and (n := number_of(row.get(strength))) is not None:
                    strengths.add(n)
                yield row.get(verdict)

        meaning = meaning_of(verdict, sides, values(), where)
        if strength is not None and (full := full_strength(strengths)) is not None:
            meaning = replace(meaning, strength=(strength, full))
        return replace(unread, parse=_parser(context, sides, meaning.read))

    return replace(unread, decide=decide)


def _with_scores(asked: str, sides: Sides, pairs: Sequence[Sides]) -> Layout:
    """The layout of two answers with a score each; refused where several pairs of scores may decide, or none."""
    context, known = context_of(asked), _SCORES | _NEUTRAL | set(TEXTS) | set(sides.words)
    clear = [s for s in pairs if set(s.words) <= known]
    scores = (clear or pairs)[0]
    fields = tuple(f for f in (asked, sides.a, sides.b, scores.a, scores.b) if f)
    unread = Layout(TWO_ANSWERS, "comparisons", fields, _prompts(context, sides))

    def decide(rows: Iterable[RowMap], where: str) -> Layout:
        if len(clear) == 1:
            remark = in_words("data.higher_better", columns=f"{scores.a}, {scores.b}")
            return replace(unread, parse=_parser(context, sides, _by_scores(scores)), remark=remark)
        shown = ", ".join(in_words("data.both", a=s.a, b=s.b) for s in clear or pairs)
        if clear:
            hidden = map_to_give(dict.fromkeys(c for s in clear[1:] for c in (s.a, s.b)))
            raise DataError(in_words("data.several_scores", where=where, columns=shown, hidden=hidden))
        given = map_to_give({"score_a": scores.a, "score_b": scores.b})
        other = map_to_give({"preference": "<column>"})
        raise DataError(in_words("data.which_is_better", where=where, columns=shown, given=given, other=other))

    return replace(unread, decide=decide)


def _parser(
    context: Context, sides: Sides, said: Callable[[RowMap], tuple[Preference, float | None]]
) -> Callable[[RowMap], Iterator[Native]]:
    def parse(row: RowMap) -> Iterator[Native]:
        a, b = text(need(row, sides.a), sides.a), text(need(row, sides.b), sides.b)
        prompt = context(row)
        preference, strength = said(row)
        yield comparison(
            row,
            prompt,
            a,
            b,
            preference,
            strength=finite_number(row.get("strength"), "strength") or strength,
            annotator=row.get("annotator"),
            created_at=moment(row.get("created_at")),
        )

    return parse


def _by_scores(scores: Sides) -> Callable[[RowMap], tuple[Preference, float | None]]:
    def said(row: RowMap) -> tuple[Preference, float | None]:
        a, b = (finite_number(need(row, c), c) for c in (scores.a, scores.b))
        if a is None or b is None:
            raise BadRow(scores.a, "unanswered", "an answer has no score", content=True)
        return "tie" if a == b else "a" if a > b else "b", None

    return said


def _prompts(context: Context, sides: Sides) -> Callable[[RowMap], Iterator[Native]]:
    """What is read where the verdict does not matter."""

    def parse(row: RowMap) -> Iterator[Native]:
        prompt = context(row)
        if prompt is None:
            prompt = settle(None, text(need(row, sides.a), sides.a), text(need(row, sides.b), sides.b))[0]
        yield Prompt(prompt=prompt, tools=tools(row))

    return parse
