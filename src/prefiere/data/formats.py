"""Read preferences in whatever layout a user holds them, and write them in one that everybody reads.

    source = read("pairs.jsonl", kind="pairs")      # the layout is detected at once
    print(source.layout)                            # TRL standard (by prompt, chosen, rejected)
    for pair in source: ...                         # lazily, and again from the start each time
    print(source.counts, source.problems)           # what was read, kept, dropped and why

Layouts are in `layouts` and its neighbours, files in `readers`, folders and the hub in `sources`, the change from one
kind of record to another in `convert`, and writing in `writers`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar, Unpack, overload

from prefiere.asked.language import in_words
from prefiere.asked.words.account import unread
from prefiere.data import convert, sources
from prefiere.data.convert import PairsPerPrompt
from prefiere.data.layouts.columns import Layout, Native, under_system, without_repeated_prompt
from prefiere.data.layouts.detect import KNOWN, Detected, check_columns, decided, detect, remap
from prefiere.data.layouts.names import SEEN_OR_HEARD, SYSTEM, renamed
from prefiere.data.layouts.unread import Asked, holds_something, keys_unread, refuse_a_guess
from prefiere.data.layouts.written import decoded, prose_columns
from prefiere.data.schema import Comparison, Demonstration, Judgement, Kind, PreferencePair, Prompt
from prefiere.data.splits import ReadFor, RowSplit
from prefiere.data.values import BadRow, Counts, DataError, Remark, Row, refuse_a_header
from prefiere.data.writers import write

__all__ = ["Counts", "DataError", "Kind", "Prompt", "Records", "read", "read_comparisons", "write"]

OnBad: TypeAlias = Literal["content", "error", "drop"]
R = TypeVar("R")

_SAMPLE = 32  # rows that decide about the layout
_SHAPES = 1_000  # kinds of rows, by the columns that hold something, that are looked at for columns not read
_SHOWN = 20  # problems kept in words; all are counted
_COMPARE = ("pairs", "comparisons", "judgements")


class ReadOptions(TypedDict, total=False):
    """What `read` takes besides the source and the kind."""

    split: str | None
    columns: Mapping[str, str | None] | None
    on_bad: OnBad
    layout: str | None
    limit: int | None
    pairs_per_prompt: PairsPerPrompt
    purpose: ReadFor
    split_for: Kind | None


class Records(Generic[R]):
    """Records of one kind, read lazily, from the start at every iteration. Made by `read`.

    ``layout`` says what was detected and why (of the first file; ``layouts`` has each file's), ``files`` what is read,
    ``split`` and ``splits`` which split it is and which there are, ``beside`` which files of a folder are not read,
    ``commit`` that of a data set of the hub. ``unread`` names the columns that are not read, as far as rows were.
    ``counts``, ``remarks`` (what a reader guessed or left) and ``problems`` (the first 20, as ``file:line (field):
    what``) belong to the latest iteration.
    """

    def __init__(
        self,
        source: str | Path,
        kind: Kind,
        *,
        split: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        on_bad: OnBad = "content",
        layout: str | None = None,
        limit: int | None = None,
        pairs_per_prompt: PairsPerPrompt = "best_worst",
        purpose: ReadFor = "train",
        split_for: Kind | None = None,
    ):
        for name, value, allowed in (
            ("kind", kind, ("pairs", "comparisons", "judgements", "demonstrations", "prompts")),
            ("on_bad", on_bad, ("content", "error", "drop")),
            ("pairs_per_prompt", pairs_per_prompt, ("best_worst", "all")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value} is not one of {', '.join(allowed)}")
        check_columns(columns)
        self.kind, self._columns, self._on_bad, self._limit = kind, columns, on_bad, limit
        self._told, self._pairs_per_prompt = layout, pairs_per_prompt
        found = sources.find(source, split_for or kind, split, purpose)
        self._parts, self.split, self.splits = found.parts, found.split, found.splits
        self.beside, self.commit = found.beside, found.commit
        self.layouts: dict[str, Detected] = {}
        self.counts = Counts()
        self.problems: list[str] = []
        self.remarks: dict[str, None] = {}
        self._prose: dict[str, frozenset[str]] = {}
        self._seen, self._read, self._passed_over = dict[str, None](), set[str](), set[str]()
        self._shapes: dict[tuple[str, ...], dict[str, str]] = {}
        self._of_rows = RowSplit(split or found.split, split_for or kind, purpose, str(source), bool(found.splits))
        self._at = 0, 0  # part and line of the latest iteration
        self.layout = self._detect(self._parts[0])

    @property
    def files(self) -> list[str]:
        return [part.name for part in self._parts]

    @property
    def votes(self) -> dict[str, Any] | None:
        """Who said so, where the records come from a store of votes."""
        return next((dict(part.about) for part in self._parts if part.about), None)

    @property
    def unread(self) -> list[str]:
        read = (self._read - self._passed_over) | ({"split"} if self._of_rows.split is not None else set())
        return [column for column in self._seen if column not in read]

    def describe(self) -> dict[str, Any]:
        """Everything about this source and its latest iteration, for data.json."""
        layouts = list(dict.fromkeys(str(d) for d in self.layouts.values()))
        about = {"files": self.files, "split": self.split, "kind": self.kind, "layout": " + ".join(layouts)}
        about |= {"unread_columns": self.unread, "unread_files": list(self.beside), "commit": self.commit}
        return about | self.counts.to_dict() | {"problems": list(self.problems), "remarks": list(self.remarks)}

    def unread_lines(self) -> list[str]:
        """What of the source is not read, in plain language."""
        return unread(self.describe())

    def key(self) -> dict[str, Any]:
        """Everything that the records depend on, as plain values: the contents of the files, and how they are read."""
        parts = [[part.name, part.content()] for part in self._parts]
        columns = dict(self._columns) if self._columns else None
        options = [self.kind, self._on_bad, self._limit, self._told, self._pairs_per_prompt, *self._of_rows.key()]
        return {"parts": parts, "columns": columns, "options": options}

    # -- from rows of a file to rows of a layout

    def _row(self, row: Row | BadRow, part: sources.Part) -> Row:
        """A row under the names that layouts know, with messages that were written as text decoded."""
        if isinstance(row, BadRow):
            raise row
        refuse_a_header(row)
        prose = self._prose.get(part.name)
        if prose is None:
            first = (r for _, r in itertools.islice(_rows_in(part), _SAMPLE) if not isinstance(r, BadRow))
            prose = self._prose[part.name] = prose_columns(first)
        row = decoded(row, prose)
        if self._columns:
            row = remap(row, self._columns)
        names = self._shapes.get(shape := tuple(row))
        if names is None:
            names = self._shapes[shape] = renamed(shape, KNOWN)
        return {names.get(k, k): v for k, v in row.items()} if names else row

    def _rows(self) -> Iterator[Row]:
        """All rows of all parts that are whole."""
        for part in self._parts:
            for _, row in _rows_in(part):
                try:
                    yield self._row(row, part)
                except BadRow:
                    continue

    def _detect(self, part: sources.Part) -> Detected:
        """The layout of one file, from its first rows that are whole."""
        if part.name in self.layouts:
            return self.layouts[part.name]
        rows: list[Row] = []
        first_bad: tuple[int, BadRow] | None = None
        for line, row in itertools.islice(_rows_in(part), _SAMPLE):
            try:
                rows.append(self._row(row, part))
            except BadRow as bad:
                first_bad = first_bad or (line, bad)
        if not rows:
            if first_bad:
                raise DataError(self._told_problem(part, *first_bad))
            raise DataError(in_words("data.no_records", data=part.name))
        found = decided(
            detect(rows, self.kind, part.name, self._columns, self._told), self.kind, self._rows(), part.name
        )
        for row in rows:
            self._account(found.layout, row)
        if self._told is None and found.layout.guesses:
            refuse_a_guess(found.layout, self.kind, self.unread, rows, part.name)
        self._of_rows.look(rows, self._rows)
        self.layouts[part.name] = found
        return found

    def _account(self, layout: Layout, row: Row) -> None:
        """Which columns there are, and which of them the layout reads, or passes over in some row."""
        there = {str(k) for k, v in row.items() if holds_something(v)}
        self._seen |= dict.fromkeys(k for k in map(str, row) if k in there)
        asked, whole = Asked(row), False
        with suppress(BadRow):
            _parse(layout, asked, lambda change: None)
            whole = True
        read = asked.read | set(layout.fields) | {*SEEN_OR_HEARD}
        self._read |= read
        if whole:
            self._passed_over |= there - read
        self._seen |= dict.fromkeys(keys_unread(row, [k for k in row if k in asked.read]))

    def _account_late(self, layout: Layout, row: Row, part: sources.Part, line: int) -> None:
        """Account for a row of columns that no row before had together."""
        known = len(self.unread)
        self._account(layout, row)
        if len(self.unread) > known and self._told is None and layout.guesses:
            refuse_a_guess(layout, self.kind, self.unread, [row], part.at(line))

    @cached_property
    def _lasts(self) -> list[int | None]:
        return [part.last() for part in self._parts]

    def share_read(self) -> float | None:
        """About which share of it all the latest iteration has read; None where nothing says how much there is."""
        part, line = self._at
        lasts = [n for n in self._lasts if n is not None]
        if self._limit is not None or len(lasts) < len(self._lasts) or not sum(lasts):
            return None
        return min(1.0, (sum(lasts[:part]) + line) / sum(lasts))

    def __iter__(self) -> Iterator[R]:
        self.counts, self.problems, self.remarks, self._at = Counts(), [], {}, (0, 0)
        return itertools.islice(self._records(self.counts), self._limit)

    def _records(self, counts: Counts) -> Iterator[R]:
        def note(change: str) -> None:
            counts.changed[change] += 1

        for number, part in enumerate(self._parts):
            layout = self._detect(part).layout
            self.remarks |= {layout.remark: None} if layout.remark and self.kind != "prompts" else {}
            shapes = set[tuple[str, ...]]()
            for line, raw in _rows_in(part, self.remarks):
                counts.read += 1
                self._at = number, line
                try:
                    row = self._row(raw, part)
                    shape = tuple([k for k, v in row.items() if v])
                    if shape not in shapes and (len(shapes) < _SHAPES or not self._seen.keys() >= set(shape)):
                        shapes.add(shape)
                        self._account_late(layout, row, part, line)
                    self._of_rows.check(row)
                    for native in _parse(layout, row, note):
                        made = convert.records(native, self.kind, pairs_per_prompt=self._pairs_per_prompt, note=note)
                        for record in made:
                            if isinstance(record, BadRow):
                                self._drop(counts, part, line, record)
                                continue
                            counts.kept += 1
                            yield replace(record, source=part.at(line))  # type: ignore[misc]
                except BadRow as bad:
                    self._drop(counts, part, line, bad)

    def _told_problem(self, part: sources.Part, line: int, bad: BadRow) -> str:
        return f"{part.at(line)} ({bad.field}): {bad.detail}"

    def _drop(self, counts: Counts, part: sources.Part, line: int, bad: BadRow) -> None:
        """Count it, or stop here, as the user chose."""
        problem = self._told_problem(part, line, bad)
        if self._on_bad == "error" or (self._on_bad == "content" and not bad.content):
            raise DataError(in_words("data.bad_content" if bad.content else "data.bad_line", problem=problem))
        counts.dropped[bad.reason] += 1
        if len(self.problems) < _SHOWN:
            self.problems.append(problem)


def _rows_in(part: sources.Part, remarks: dict[str, None] | None = None) -> Iterator[tuple[int, Row | BadRow]]:
    """The rows of a part; what its reader remarks is added to ``remarks``."""
    for line, row in part.rows():
        if not isinstance(row, Remark):
            yield line, row
        elif remarks is not None:
            remarks[row.text] = None


def _parse(layout: Layout, row: Mapping[str, Any], note: Callable[[str], None]) -> list[Native]:
    """What a row holds. A value of another shape than the layout has is damage like any other."""
    for column in () if _TO_PERCEIVE.isdisjoint(row) else SEEN_OR_HEARD:
        if column in row and _is_there(row[column]):
            detail = "the example holds something to see or hear, which is not read; it is left out"
            raise BadRow(column, f"{column} not read", detail, content=True)
    try:
        made = [without_repeated_prompt(native, note) for native in layout.parse(row)]
        return made if _SYSTEMS.isdisjoint(row) else [under_system(native, row, note) for native in made]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        detail = f"the values are not shaped as in layout {layout.name} ({type(e).__name__}: {e})"
        raise BadRow(", ".join(layout.fields) or "row", "unexpected shape", detail) from e


_TO_PERCEIVE, _SYSTEMS = frozenset(SEEN_OR_HEARD), frozenset(SYSTEM)


def _is_there(value: Any) -> bool:
    return any(map(_is_there, value)) if isinstance(value, list) else bool(value)


@overload
def read(source: str | Path, *, kind: Literal["pairs"], **options: Unpack[ReadOptions]) -> Records[PreferencePair]: ...
@overload
def read(source: str | Path, *, kind: Literal["judgements"], **options: Unpack[ReadOptions]) -> Records[Judgement]: ...
@overload
def read(
    source: str | Path, *, kind: Literal["demonstrations"], **options: Unpack[ReadOptions]
) -> Records[Demonstration]: ...
@overload
def read(source: str | Path, *, kind: Literal["prompts"], **options: Unpack[ReadOptions]) -> Records[Prompt]: ...
@overload
def read(
    source: str | Path, *, kind: Literal["comparisons"], **options: Unpack[ReadOptions]
) -> Records[Comparison]: ...
def read(source: str | Path, *, kind: Kind, **options: Unpack[ReadOptions]) -> Records[Any]:
    """Records of one kind from a file, a folder, a saved data set or a hub id (``owner/name``, ``owner/name:config``).

    kind: "pairs", "judgements" (KTO), "demonstrations" (SFT), "prompts" or "comparisons". One is made of the other
    where that makes sense: demonstrations are the preferred answers, judgements both answers of a pair, prompts come
    from everything; pairs are not made of judgements. Ties become pairs with label 0.5.

    split: of a folder, saved data set, hub id or column ``split``; without it the training split, or for purpose="eval"
    the one held out; ``name[split]`` says the same, and ``owner/name@revision`` a state of the hub. split_for: the
    kind that chooses among splits, where records are read again as another one (default: ``kind``). columns:
    ``{"prompt": "question"}`` takes the prompt from the column question (a dotted path reaches inside one; None hides a
    column). layout: its name, if the detection errs. limit: at most so many records. pairs_per_prompt: of ranked
    answers, "best_worst" or "all".

    on_bad: what happens to an example that cannot be used.
        "content" (default): one with nothing to learn from (an empty answer, chosen equal to rejected, both called bad)
            is left out and counted; damage (broken JSON, a missing column, a line of gigabytes) is an error.
        "error": both are errors.
        "drop": both are left out and counted. A file that cannot be read on behind the damage is still an error.

    Strings stay raw text; messages, ShareGPT turns, instruction columns and "Human:/Assistant:" transcripts become
    messages. A margin is taken from ``margin``, or is the difference of two scores. How strongly somebody preferred an
    answer becomes a soft label: 0.7, 0.8, 0.9 at a third, two thirds and all of the scale.

    Raises DataError (a ValueError) with file, line and field, or FileNotFoundError; the layout is settled, and its
    errors raised, before the first record is asked for.
    """
    return Records(source, kind, **options)


def read_comparisons(source: str | Path, **options: Unpack[ReadOptions]) -> Records[Comparison]:
    """What people said, with ties, who, when and how strongly where the layout keeps it; plain pairs prefer a."""
    return Records(source, "comparisons", **options)
