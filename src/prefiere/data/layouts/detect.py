"""Which layout is this? Told from the columns and values of the first rows; a column map settles what is ambiguous."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefiere.asked.language import in_words
from prefiere.data.layouts.columns import Layout
from prefiere.data.layouts.compared import COMPARED
from prefiere.data.layouts.names import ASKED, SEEN_OR_HEARD, SYSTEM, bare_name, likely, map_to_give, words_of
from prefiere.data.layouts.pairs import PAIRS
from prefiere.data.layouts.several import SEVERAL, rated
from prefiere.data.layouts.single import SINGLE, on_scale, scale_of
from prefiere.data.layouts.two_answers import TWO_ANSWERS, answers_of, holds, is_number, is_text, recognised
from prefiere.data.layouts.verdicts import about_verdict, side_word
from prefiere.data.schema import Kind
from prefiere.data.values import BadRow, DataError, Row

LAYOUTS: tuple[Layout, ...] = (*COMPARED, *PAIRS, *SINGLE)

# Which kinds of record can be made of what a layout holds.
MAKES: dict[Kind, tuple[Kind, ...]] = {
    "pairs": ("pairs", "comparisons", "judgements", "demonstrations", "prompts"),
    "comparisons": ("pairs", "comparisons", "judgements", "demonstrations", "prompts"),
    "judgements": ("judgements", "demonstrations", "prompts"),
    "demonstrations": ("demonstrations", "prompts"),
    "prompts": ("prompts",),
}

# Columns that a layout reads where they are present.
OPTIONAL = (
    *SYSTEM,
    "input",
    "history",
    "tools",
    "weight",
    "margin",
    "soft_label",
    "strength",
    "annotator",
    "created_at",
)
# Names by which a column map says what the numbers of a verdict mean, or that the higher score is the better answer's.
_VERDICTS = ("preference", "winner_index", "winner_number", "a_is_better", "preference_strength", "score_a", "score_b")
_FIELDS = {f for layout in LAYOUTS for f in layout.fields} | {*OPTIONAL, *_VERDICTS}
_VOTERS = ("voter", "rater", "labeler", "labeller", "annotator_id")
KNOWN = {bare_name(name): name for name in sorted(_FIELDS | {*ASKED, *SEEN_OR_HEARD, "split"})}
KNOWN |= {bare_name(name): "annotator" for name in _VOTERS}
"""Every column that a layout reads, by its plain name."""


@dataclass(frozen=True)
class Detected:
    """The layout of a source, and how it was recognised."""

    layout: Layout
    why: str

    @property
    def name(self) -> str:
        return self.layout.name

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def remap(row: Mapping[str, Any], columns: Mapping[str, str | None] | None) -> Row:
    """The row under the layout's field names.

    ``columns[field]`` is the data's column, in whatever spelling, or a dotted path inside one; None hides the column
    of that name. Raises BadRow where a mapped column is missing.
    """
    if not columns:
        return dict(row)
    taken = {field: _look_up(row, column, field) for field, column in columns.items() if column is not None}
    hidden = {*columns, *(_spelt(row, c) for c in columns.values() if c is not None)}
    return {k: v for k, v in row.items() if k not in hidden} | taken


def _spelt(row: Mapping[str, Any], column: str) -> str:
    """The row's own spelling of a column."""
    if column in row:
        return column
    return next((k for k in row if bare_name(k) == bare_name(column)), column)


def _look_up(row: Mapping[str, Any], column: str, field: str) -> Any:
    if (own := _spelt(row, column)) in row:
        return row[own]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            found = ", ".join(map(str, row)) or "none"
            what = f"the column is missing (mapped to {field}); found: {found}"
            raise BadRow(column, f"missing column {column}", what)
        value = value[part]
    return value


def check_columns(columns: Mapping[str, str | None] | None) -> None:
    """Raise DataError at a field that no layout has. A column of any name can be hidden."""
    for field, column in (columns or {}).items():
        if column is None or field in _FIELDS or field in ASKED:
            continue
        near = difflib.get_close_matches(field, sorted(_FIELDS), n=1)
        hint = in_words("data.near", near=near[0]) if near else ""
        raise DataError(in_words("data.no_field", field=field, hint=hint))


def named(name: str) -> list[Layout]:
    """The layouts of this name. Raises DataError at a name that none has."""
    found = [layout for layout in LAYOUTS if layout.name == name]
    if not found and name not in (TWO_ANSWERS, SEVERAL):
        names = list(dict.fromkeys([*(layout.name for layout in LAYOUTS), TWO_ANSWERS, SEVERAL]))
        near = difflib.get_close_matches(name, names, n=1)
        raise DataError(
            f"layout {name!r} is unknown{f'; did you mean {near[0]!r}?' if near else ''} Known: {', '.join(names)}"
        )
    return found


def candidates(rows: Sequence[Row], layout: str | None) -> Sequence[Layout]:
    """The layouts to choose from, the most specific first."""
    two, several = ([x] if x is not None else [] for x in (recognised(rows), rated(rows)))
    if layout is not None:
        return [*named(layout), *(x for x in (*two, *several) if x.name == layout)]
    stated, guessed = ([x for x in PAIRS if x.guesses == guesses] for guesses in (False, True))
    one, guess = ([x for x in SINGLE if x.guesses == guesses] for guesses in (False, True))
    return [*COMPARED, *stated, *two, *guessed, *one, *several, *guess]


def detect(
    rows: Sequence[Row],
    kind: Kind,
    where: str,
    columns: Mapping[str, str | None] | None = None,
    layout: str | None = None,
) -> Detected:
    """The most specific layout that fits at least half as many of these rows as the best fitting one.

    ``rows`` are already remapped. Raises DataError where none fits, or where what fits cannot give this kind.
    """
    scaled = on_scale(rows) if kind == "judgements" and layout is None else None
    if scaled is not None:
        return Detected(scaled, in_words("account.by", fields=", ".join(scaled.fields)))
    votes = [(candidate, sum(candidate.fits(row) for row in rows)) for candidate in candidates(rows, layout)]
    mapped = {f for f, c in (columns or {}).items() if c is not None} - set(OPTIONAL)
    votes = [v for v in votes if v[1] and mapped <= set(v[0].fields)] or votes
    most = max((n for _, n in votes), default=0)
    if most == 0:
        raise _unknown(rows, kind, where, layout)
    fitting = [candidate for candidate, n in votes if 2 * n >= most]
    able = [candidate for candidate in fitting if kind in MAKES[candidate.holds]]
    if not able:
        answered = [candidate for candidate in fitting if candidate.holds != "prompts"]
        beside = kind in ("pairs", "comparisons") and answers_of(_columns_of(rows), rows) is not None
        if not answered or beside:  # there may be answers under names that no layout has
            raise _unknown(rows, kind, where, layout)
        found = answered[0]
        fields, holds = ", ".join(found.fields), in_words(f"data.holds.{found.holds}")
        told = {"kind": in_words(f"data.kind.{kind}"), "layout": found.name, "fields": fields, "holds": holds}
        raise DataError(in_words("data.no_kind", where=where, **told) + _graded(kind, rows, found.fields))
    best = able[0]
    fields = ", ".join(best.fields) or in_words("account.by_responses")
    how = in_words("account.as_told") if layout else in_words("account.by", fields=fields)
    if columns:
        how = in_words("account.with", how=how, columns=", ".join(f"{f}={c}" for f, c in columns.items()))
    graded = _ungraded(rows, best) if best.holds == "demonstrations" else ""
    return Detected(replace(best, remark=graded) if graded else best, how)


def decided(found: Detected, kind: Kind, rows: Iterable[Row], where: str) -> Detected:
    """The layout once all rows of the source said what its values mean; prompts need no verdict."""
    if found.layout.decide is None or kind == "prompts":
        return found
    return replace(found, layout=found.layout.decide(rows, where))


# -- what to do about columns that no layout has ----------------------------------------------------------------------


_GRADES = {"label", "rating", "score", "stars", "star", "grade", "mark", "points", "feedback", "quality", "nota"}


_OF_A_VERDICT = {"good", "thumbs", "desirable", "answer"}


def _graded(kind: Kind, rows: Sequence[Row], read: Collection[str]) -> str:
    """Of answers that were to be good or bad: which column holds grades instead, if one does."""
    for column in _columns_of(rows) if kind == "judgements" else ():
        values = sorted({float(row[column]) for row in rows if is_number(row.get(column))})
        named = column not in read and set(words_of(column)) & _GRADES
        if named and len(values) > 2 and holds(rows, column, is_number):
            shown = ", ".join(f"{v:g}" for v in values[:6])
            return ". " + in_words("data.graded", column=column, values=shown)
    return ""


def _ungraded(rows: Sequence[Row], layout: Layout) -> str:
    """Of answers to be imitated: that a column beside them grades them, which nobody reads, if one does."""
    for column in _columns_of(rows):
        values = sorted({str(row[column])[:20] for row in rows if row.get(column) is not None})
        named = column not in layout.fields and words_of(column) and set(words_of(column)) <= _GRADES | _OF_A_VERDICT
        graded = scale_of(row.get(column) for row in rows) is not None or holds(rows, column, is_number)
        if named and graded and 2 <= len(values) <= 11:
            return in_words("data.ungraded", column=column, values=", ".join(values[:6]))
    return ""


def _unknown(rows: Sequence[Row], kind: Kind, where: str, layout: str | None) -> DataError:
    found = _columns_of(rows)
    holds = in_words(f"data.kind.{kind}")
    columns = ", ".join(found) or in_words("data.no_columns")
    asked = (
        in_words("data.other_layout", layout=layout, kind=holds) if layout else in_words("data.no_layout", kind=holds)
    )
    head = f"{where}{asked} {in_words('data.columns', columns=columns)}"
    if kind in ("pairs", "comparisons", "judgements") and (made := _as_comparisons(found, rows)) is not None:
        return DataError(f"{head} {in_words('data.two_answers', columns=map_to_give(made))}")
    able = [x for x in (named(layout) if layout else LAYOUTS) if kind in MAKES[x.holds] and x.fields]
    able.reverse()  # of equals, the most general first
    nearest = sorted(
        able,
        key=lambda x: (
            -sum(f in found for f in x.fields),
            x.holds != kind,
            x.name not in ("TRL standard", "TRL unpaired (KTO)"),
            len(x.fields),
        ),
    )[:3]
    lines = []
    for candidate in nearest:
        missing = [f for f in candidate.fields if f not in found]
        why = in_words("data.lacks", columns=", ".join(missing)) if missing else in_words("data.columns_of_other_type")
        lines.append(f"{candidate.name} ({why})")
    near = "; ".join(dict.fromkeys(lines))
    example = ""
    if nearest:
        example = f" {in_words('data.name_them', columns=map_to_give(_example(nearest[0], found, rows)))}"
    return DataError(f"{head} {in_words('data.nearest', layouts=near)}{example}")


def _columns_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(k) for row in rows for k in row))


def _as_comparisons(found: Sequence[str], rows: Sequence[Row]) -> dict[str, str] | None:
    """A column map for two answers and a verdict, where a column holds verdicts or answers stand side by side: such
    data must not be advised to call one side the chosen one."""
    sides = answers_of(found, rows)
    texts = [c for c in found if holds(rows, c, lambda v: is_text(v) and not _prefers(v))]
    won, lost = likely("chosen", texts), likely("rejected", texts)
    opposed = {won, lost} if won != lost and None not in (won, lost) else set()  # "better" beside "worse": two answers
    ranked = sorted((rank, c) for c in found if (rank := about_verdict(c)) is not None and c not in opposed)
    spoken = [c for c in found if holds(rows, c, _prefers)]
    verdicts = [c for _, c in ranked] or spoken
    if not verdicts and (sides is None or opposed):
        return None
    a, b = (sides.a, sides.b) if sides is not None else ("<column>", "<column>")
    asked = likely("prompt", [c for c in found if c not in (a, b, *verdicts)])
    return {
        "prompt": asked or "<column>",
        "answer_a": a,
        "answer_b": b,
        "preference": verdicts[0] if verdicts else "<column>",
    }


def _prefers(value: object) -> bool:
    """Whether a word or a short phrase says which of two answers is preferred."""
    return isinstance(value, str) and side_word(value) is not None


def _example(layout: Layout, found: Sequence[str], rows: Sequence[Row]) -> dict[str, str]:
    """A column map for the error: each missing field with the column of text of the most like name, of those still
    free. Answers choose first: what is like both an answer and a prompt (text_chosen) is the answer."""
    free = [c for c in found if c not in layout.fields and holds(rows, c, is_text)]
    guess = {}
    for field in sorted((f for f in layout.fields if f not in found), key=lambda f: f in (*ASKED, "input")):
        guess[field] = likely(field, free) or "<column>"
        free = [c for c in free if c != guess[field]]
    return {f: guess[f] for f in layout.fields if f in guess}
