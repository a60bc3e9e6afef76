"""Which layout is this? Told from the columns and values of the first rows; a column map settles what is ambiguous."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefiere.data.layouts.columns import Layout
from prefiere.data.layouts.compared import COMPARED
from prefiere.data.layouts.pairs import PAIRS
from prefiere.data.layouts.single import SINGLE
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

_HINT: dict[Kind, str] = {
    "judgements": "single answers called good or bad, with none beside them; KTO takes them as such (loss_type=kto)",
    "demonstrations": "answers to imitate, without a preference; supervised training (sft) takes them",
}

# Columns that a layout reads where they are present.
OPTIONAL = (
    "system",
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

    ``columns[field]`` is the data's column, or a dotted path inside one; None hides the column of that name. Raises
    BadRow where a mapped column is missing.
    """
    if not columns:
        return dict(row)
    taken = {field: _look_up(row, column, field) for field, column in columns.items() if column is not None}
    hidden = {*columns, *columns.values()}
    return {k: v for k, v in row.items() if k not in hidden} | taken


def _look_up(row: Mapping[str, Any], column: str, field: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            detail = f"the column is missing (mapped to {field}); found: {', '.join(map(str, row))}"
            raise BadRow(column, f"missing column {column}", detail)
        value = value[part]
    return value


def check_columns(columns: Mapping[str, str | None] | None) -> None:
    """Raises DataError at a field that no layout knows."""
    known = list(dict.fromkeys(f for layout in LAYOUTS for f in layout.fields)) + list(OPTIONAL)
    for field, column in (columns or {}).items():
        if column is not None and field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"fields are {', '.join(known)}"
            raise DataError(f"columns: {field} is not a field of any layout; {hint}")


def named(name: str) -> list[Layout]:
    """The layouts of this name. Raises DataError where there is none."""
    found = [layout for layout in LAYOUTS if layout.name == name]
    if not found:
        names = list(dict.fromkeys(layout.name for layout in LAYOUTS))
        near = difflib.get_close_matches(name, names, n=1)
        raise DataError(
            f"layout {name!r} is unknown{f'; did you mean {near[0]!r}?' if near else ''} Known: {', '.join(names)}"
        )
    return found


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
    candidates: Iterable[Layout] = named(layout) if layout else LAYOUTS
    votes = [(candidate, sum(candidate.fits(row) for row in rows)) for candidate in candidates]
    mapped = {f for f, c in (columns or {}).items() if c is not None} - set(OPTIONAL)
    votes = [v for v in votes if v[1] and mapped <= set(v[0].fields)] or votes
    most = max(n for _, n in votes)
    if most == 0:
        raise _unknown(rows, kind, where, layout)
    fitting = [candidate for candidate, n in votes if 2 * n >= most]
    able = [candidate for candidate in fitting if kind in MAKES[candidate.holds]]
    if not able:
        answered = [candidate for candidate in fitting if candidate.holds != "prompts"]
        if not answered:  # there may be answers under names that no layout has
            raise _unknown(rows, kind, where, layout)
        found = answered[0]
        fields = ", ".join(found.fields)
        raise DataError(f"{where}: no {kind} in layout {found.name} ({fields}): it holds {_HINT[found.holds]}")
    best = able[0]
    how = "as told" if layout else f"by {', '.join(best.fields) or 'columns that end in .responses'}"
    if columns:
        how += ", with " + ", ".join(f"{f}={c}" for f, c in columns.items())
    return Detected(best, how)


def _unknown(rows: Sequence[Row], kind: Kind, where: str, layout: str | None) -> DataError:
    found = list(dict.fromkeys(str(k) for row in rows for k in row))
    able = [x for x in (named(layout) if layout else LAYOUTS) if kind in MAKES[x.holds] and x.fields]
    able.reverse()  # of equals, the most general first
    nearest = sorted(
        able,
        key=lambda x: (-sum(f in found for f in x.fields), x.holds != kind, x.name != "TRL standard", len(x.fields)),
    )[:3]
    lines = []
    for candidate in nearest:
        missing = [f for f in candidate.fields if f not in found]
        why = f"lacks {', '.join(missing)}" if missing else "its columns are empty or of another type"
        lines.append(f"{candidate.name} ({why})")
    near = "; ".join(dict.fromkeys(lines))
    example = _example(nearest[0], found)
    asked = f" does not fit layout {layout}" if layout else " has no known layout"
    return DataError(
        f"{where}{asked} for {kind}. Columns found: {', '.join(found) or 'none'}. Nearest: {near}. "
        f"Name them, for example columns={example}"
    )


def _example(layout: Layout, found: Sequence[str]) -> dict[str, str]:
    """A column map for the error: each missing field with the likeliest column that is still free."""
    free = [c for c in found if c not in layout.fields]
    guess = {}
    for field in layout.fields:
        if field in found:
            continue
        near = difflib.get_close_matches(field, free, n=1, cutoff=0.5) or free[:1]
        guess[field] = near[0] if near else "<column>"
        free = [c for c in free if c != guess[field]]
    return guess
