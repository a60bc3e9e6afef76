"""Write records as JSONL, Parquet or a sheet of Excel in TRL's layouts; `formats.read` gives the same records back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefiere.data.convert import AnyRecord
from prefiere.data.packed import IN_A_CELL, cell_text
from prefiere.data.schema import Comparison, Demonstration, Judgement, PreferencePair, Prompt, Text
from prefiere.files import atomic


def write(records: Iterable[AnyRecord], path: str | Path) -> int:
    """Write records to ``path`` (.jsonl, .parquet or .xlsx), atomically. Returns how many.

    Columns: prompt, chosen, rejected (and soft_label, margin, annotator); prompt, completion, label; prompt,
    completion; prompt, answer_a, answer_b, preference (and strength, annotator, created_at); each with weight and tools
    where they are not the default. ``source`` is not written. Parquet has no type for free-form keys: there tools and
    what a message holds besides role and content are JSON text, and all prompts and answers must be strings, or all
    messages. In a sheet messages are JSON text as well, and no cell is a formula.

    Raises ValueError at another suffix, at text that the file cannot hold, or at mixed forms in Parquet and sheets.
    """
    path = can_be_written(path)
    with _folder_of(path), atomic(path) as temporary:
        return _WRITERS[path.suffix](records, temporary, path.name)


@contextmanager
def _folder_of(path: Path) -> Iterator[None]:
    """Make the folder of a file, and take away on failure what was made."""
    made = [p for p in path.absolute().parents if not p.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise


def can_be_written(path: str | Path) -> Path:
    """A path to `write` to. Raises ValueError, before anything is read or made, for one that cannot be written."""
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(f"{path}: write to a name that ends in .jsonl, .parquet or .xlsx")
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir() or path.is_dir():
        raise ValueError(
            f"{path} cannot be written: {path if path.is_dir() else above} is {'a' if path.is_dir() else 'no'} folder"
        )
    return path


def _text(value: Text) -> Any:
    """Raw text, or messages; a turn that is not learnt says so, as `messages` reads it."""
    return value if isinstance(value, str) else [m.as_dict() | ({} if m.learnt else {"train": False}) for m in value]


def as_row(record: AnyRecord) -> dict[str, Any]:
    """The record as a JSON object, with defaults left out."""
    row: dict[str, Any] = {"prompt": _text(record.prompt)}
    optional: dict[str, tuple[Any, Any]] = {}
    if isinstance(record, PreferencePair):
        row |= {"chosen": _text(record.chosen), "rejected": _text(record.rejected)}
        optional = {"soft_label": (record.label, 1.0), "margin": (record.margin, None), "weight": (record.weight, 1.0)}
        optional["annotator"] = (record.annotator, None)
    elif isinstance(record, Comparison):
        row |= {"answer_a": _text(record.answer_a), "answer_b": _text(record.answer_b), "preference": record.preference}
        optional = {k: (getattr(record, k), None) for k in ("strength", "annotator", "created_at")}
    elif isinstance(record, Judgement):
        row |= {"completion": _text(record.completion), "label": record.desirable}
        optional = {"weight": (record.weight, 1.0)}
    elif isinstance(record, Demonstration):
        row |= {"completion": _text(record.completion)}
        optional = {"weight": (record.weight, 1.0)}
    else:
        assert isinstance(record, Prompt)
    optional["tools"] = (list(record.tools), [])
    return row | {k: value for k, (value, default) in optional.items() if value != default}


@contextmanager
def _naming(record: AnyRecord, number: int) -> Iterator[None]:
    """Say of which record it is that it cannot be written."""
    try:
        yield
    except ValueError as e:  # a lone surrogate, nan
        raise ValueError(f"record {number} ({record.source or 'no source'}) cannot be written: {e}") from e


def _write_jsonl(records: Iterable[AnyRecord], path: Path, name: str) -> int:
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for count, record in enumerate(records, 1):
            with _naming(record, count):
                f.write(_json(as_row(record)) + "\n")
    return count


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=dict)


_TEXTS = ("prompt", "chosen", "rejected", "completion", "answer_a", "answer_b")
_NUMBERS = ("weight", "margin", "soft_label", "strength")


def _holds_messages(rows: Iterable[Mapping[str, Any]], name: str) -> bool:
    """Whether the texts of rows are messages. Raises ValueError where some are and others are not."""
    chats = {isinstance(row[c], list) for row in rows for c in _TEXTS if c in row}
    if len(chats) > 1:
        raise ValueError(f"{name}: some texts are strings and others messages; write .jsonl, which takes both")
    return True in chats


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(k for row in rows for k in row))


def _write_parquet(records: Iterable[AnyRecord], path: Path, name: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{k: _cell(k, v) for k, v in as_row(r).items()} for r in records]
    chats = _holds_messages(rows, name)
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra_json", pa.string())])
    if not any("extra_json" in m for row in rows for c in _TEXTS if isinstance(row.get(c), list) for m in row[c]):
        message = pa.struct([("role", pa.string()), ("content", pa.string())])

    def kind_of(column: str) -> pa.DataType:
        if column in _TEXTS:
            return pa.list_(message) if chats else pa.string()
        return pa.float64() if column in _NUMBERS else pa.bool_() if column == "label" else pa.string()

    schema = pa.schema([(c, kind_of(c)) for c in _columns(rows)])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return len(rows)


def _cell(column: str, value: Any) -> Any:
    if column == "tools":
        return _json(value)
    return [_message(m) for m in value] if column in _TEXTS and isinstance(value, list) else value


def _message(value: Mapping[str, Any]) -> dict[str, Any]:
    plain = {"role": value["role"], "content": value["content"]}
    extra = {k: v for k, v in value.items() if k not in plain}
    return plain | ({"extra_json": _json(extra)} if extra else {})


# -- sheets of Excel ---------------------------------------------------------------------------------------------------


_MOST_ROWS = 1 << 20  # of a sheet, its header among them
# What XML cannot hold or changes, and what would be read as such an escape: written as Excel does, _x000D_.
_ESCAPED = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")
_TYPES = {int: "n", float: "n", bool: "b"}  # as openpyxl calls them
_COMMANDS = ("=", "+", "-", "@", "\t", "\r")  # what begins a formula where somebody types it


def _write_xlsx(records: Iterable[AnyRecord], path: Path, name: str) -> int:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    every = list(records)
    rows = [as_row(record) for record in every]
    _holds_messages(rows, name)
    if len(rows) >= _MOST_ROWS:
        raise ValueError(f"{name}: a sheet holds {_MOST_ROWS - 1:,} records, and these are {len(rows):,}; write .jsonl")
    columns, cells = _columns(rows), []
    for number, (record, row) in enumerate(zip(every, rows, strict=True), 1):
        with _naming(record, number):
            cells.append([_of_cell(row[c], c) if c in row else None for c in columns])
    book = Workbook(write_only=True)
    sheet = book.create_sheet("data")
    sheet.append(columns)
    for line in cells:
        sheet.append([None if cell is None else _styled(WriteOnlyCell(sheet, cell[1]), cell[0]) for cell in line])
    book.save(path)
    return len(rows)


def _of_cell(value: Any, column: str) -> tuple[str, str]:
    """The type of a cell and what stands in it, numbers with all their digits. Raises ValueError for what would not be
    read back."""
    if (kind := _TYPES.get(type(value))) is not None:
        return kind, str(int(value)) if kind == "b" else _json(value)
    text = value if isinstance(value, str) else _json(value)
    text.encode()
    if cell_text(text) is None:
        raise ValueError(f"{column} is {text!r}, which a sheet does not tell from an empty cell; write .jsonl")
    text = _ESCAPED.sub(lambda m: f"_x{ord(m[0]):04X}_", text)
    if len(text) >= IN_A_CELL:
        raise ValueError(f"{column} has {len(text):,} characters, and a cell keeps {IN_A_CELL - 1:,}; write .jsonl")
    return "s", text


def _styled(cell: Any, kind: str) -> Any:
    """The cell as what it is: a text is a text whatever it begins with, also when somebody edits it."""
    cell.data_type = kind
    cell.quotePrefix = kind == "s" and cell.value.startswith(_COMMANDS)
    return cell


_WRITERS = {".jsonl": _write_jsonl, ".parquet": _write_parquet, ".xlsx": _write_xlsx}
