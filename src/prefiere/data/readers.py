"""From one file to its rows, lazily and in little memory, whatever its name says it holds.

Gives ``(line, row)`` for every record, with a `BadRow` in place of a damaged one behind which reading can go on (a line
of JSONL). Where it cannot (a broken gzip stream, Parquet, a JSON list) it raises `DataError` with file and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from prefiere.asked.language import count_of, in_words
from prefiere.data.packed import (
    DAMAGED,
    ZIP,
    cell_text,
    is_sheet,
    packed_as,
    refuse_twins,
    refuse_what_is_no_data,
    sheet_rows,
    unpacked,
)  # fmt: skip
from prefiere.data.values import BadRow, DataError, Remark, Row, without_nulls

MAX_RECORD = 64 * 2**20
"""Bytes that one line of text or one JSON record may take. Longer ones are never held in memory."""

Rows: TypeAlias = Iterator[tuple[int, Row | BadRow | Remark]]

# Under these keys a JSON document may wrap its list of records.
WRAPPERS = ("data", "rows", "records", "examples", "instances", "items", "train")
_WRAPPED = re.compile(rf'\s*{{\s*"(?:{"|".join(WRAPPERS)})"\s*:\s*\[\s*[{{\]]')
_HEAD = 1 << 16


def read_rows(path: Path) -> Rows:
    """Every row of a file. The format is taken from the content; only text that fits several is decided by its name."""
    with open(path, "rb") as f:
        magic = f.read(32)
    refuse_what_is_no_data(path, magic)
    if magic[:4] == ZIP and is_sheet(path):
        return sheet_rows(path)
    if magic[:4] == b"PAR1":
        return _parquet(path)
    if magic[:6] == b"ARROW1" or magic[:4] == b"\xff\xff\xff\xff":
        return _arrow(path)
    return _text(path, packed_as(magic))


def about_lines(path: Path) -> int | None:
    """About which number the last row of `read_rows` has: of a text by its size and its first lines, of Parquet as it
    says. None where neither tells (packed files, sheets, a text of one line), or the file is damaged."""
    with open(path, "rb") as f:
        head = f.read(_HEAD)
    if head[:4] == b"PAR1":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError):  # what is wrong with it, and where, is told by who reads it
            return None
    lines = 0 if b"\0" in head or packed_as(head[:32]) else head.count(b"\n")
    return round(path.stat().st_size * lines / (head.rfind(b"\n") + 1)) if lines > 1 else None


# -- text -------------------------------------------------------------------------------------------------------------


def _text(path: Path, packed: str | None) -> Rows:
    line = 0
    try:
        with unpacked(path, packed) if packed else _plainly(path) as (opened, suffix):
            f: io.BufferedReader = io.BufferedReader(cast(io.RawIOBase, opened), _HEAD)
            for line, row in _text_rows(f, path, suffix):
                yield line, row
    except DAMAGED as e:
        raise DataError(f"{path}: the compressed file is damaged after line {line} ({e}); fetch it again") from e
    except OSError as e:
        if packed != "zst":
            raise
        raise DataError(f"{path}: the compressed file is damaged after line {line} ({e}); fetch it again") from e


@contextmanager
def _plainly(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    with open(path, "rb", buffering=0) as f:
        yield cast(BinaryIO, f), path.suffix


def _text_rows(f: io.BufferedReader, path: Path, suffix: str) -> Rows:
    head = f.peek(_HEAD)[:_HEAD]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(in_words("data.utf16", path=path))
    if head[:3] == b"\xef\xbb\xbf":
        f.read(3)
        head = head[3:]
    refuse_what_is_no_data(path, head)
    if head[:4] in (b"PAR1", ZIP) or head[:6] == b"ARROW1":
        raise DataError(f"{path}: a table inside a compressed file; unpack it")
    start = head.lstrip()[:1]
    if not head.strip() and len(head) < _HEAD:
        raise DataError(in_words("data.empty_file", path=path))
    suffix = suffix.lower()
    if suffix == ".txt":
        return _plain_lines(f, path)
    if suffix in (".csv", ".tsv") and not (
        start in (b"{", b"[") and head.lstrip()[1:].lstrip()[:1] in (b'"', b"{", b"}")
    ):
        return _csv(f, path)
    if start not in (b"{", b"[") and suffix not in (".json", ".jsonl", ".ndjson"):
        if not any(d in head.split(b"\n")[0] for d in (b",", b";", b"\t")):
            raise DataError(in_words("data.no_format", path=path))
        return _csv(f, path)
    if start == b"[" or (_WRAPPED.match(head.decode("utf-8", "replace")) and not _of_lines(head, suffix)):
        return _json_document(f, path)
    return _json(f, path, suffix)


def _of_lines(head: bytes, suffix: str) -> bool:
    """Whether what is named JSON Lines begins with a line that is a whole record, and goes on: then it wraps none."""
    first, _, rest = head.strip().partition(b"\n")
    if suffix not in (".jsonl", ".ndjson") or not rest.strip():
        return False
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _lines(f: BinaryIO) -> Iterator[tuple[int, bytes | BadRow]]:
    """Lines with their ends, by number. A line beyond `MAX_RECORD` is skipped piece by piece and reported."""
    number = 0
    while line := f.readline(MAX_RECORD + 1):
        number += 1
        if len(line) <= MAX_RECORD:
            yield number, line
            continue
        size, ended = len(line), line.endswith(b"\n")
        del line
        while not ended and (piece := f.readline(1 << 20)):
            size, ended = size + len(piece), piece.endswith(b"\n")
        detail = f"the line has {size:,} bytes, more than {MAX_RECORD:,}; is this one record per line?"
        yield number, BadRow("line", "line too long", detail)


def _decoded(f: BinaryIO) -> Iterator[tuple[int, str | BadRow]]:
    for number, line in _lines(f):
        if isinstance(line, BadRow):
            yield number, line
            continue
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as e:
            yield number, BadRow("line", "not UTF-8", _not_utf8(line, e))


def _not_utf8(line: bytes, e: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{line[e.start]:02x} at position {e.start + 1}; convert the file to UTF-8"


def _as_row(value: Any) -> Row | BadRow:
    if isinstance(value, Mapping):
        if value and isinstance(next(iter(value.values())), Mapping) and _is_columns(value):
            detail = "columns, not records: write it with orient='records', lines=True"
            return BadRow("line", "columns, not records", detail)
        return cast(Row, value)
    if isinstance(value, str):
        return {"text": value}
    return BadRow("line", "not a record", f"expected an object with columns, found {type(value).__name__}")


def _is_columns(value: Mapping[str, Any]) -> bool:
    """Whether these are columns as pandas writes them: {name: {"0": cell, "1": cell}, ...}."""
    rows = next(iter(value.values()))
    numbered = all(isinstance(c, Mapping) and c.keys() == rows.keys() for c in value.values())
    return numbered and bool(rows) and all(k.isdigit() for k in rows)


def _plain_lines(f: BinaryIO, path: Path) -> Rows:
    """A text file: each line that is not blank is a ``text``."""
    for number, line in _decoded(f):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _json(f: io.BufferedReader, path: Path, suffix: str) -> Rows:
    """One record per line; or, unless named JSONL, a document if the first line is no whole record or wraps a list."""
    head = f.peek(_HEAD)[:_HEAD].lstrip()
    if suffix not in (".jsonl", ".ndjson"):
        try:
            first = json.loads(head.split(b"\n")[0]) if b"\n" in head else None
        except ValueError:
            first = None
        if not isinstance(first, dict) or any(is_records(first.get(k)) for k in WRAPPERS):
            return _json_document(f, path)
    return _json_lines(f)


def is_records(value: Any) -> bool:
    """Whether this is a list of JSON objects."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _json_lines(f: BinaryIO) -> Rows:
    for number, line in _decoded(f):
        if isinstance(line, BadRow):
            yield number, line
            continue
        if not line.strip():
            continue
        try:
            yield number, _as_row(json.loads(line))
        except json.JSONDecodeError as e:
            yield number, BadRow("line", "broken JSON", f"broken JSON: {e.msg} at column {e.colno}")
        except (ValueError, RecursionError) as e:  # a number of 5,000 digits; brackets nested without end
            yield number, BadRow("line", "broken JSON", f"broken JSON: {e}")


def _json_document(f: BinaryIO, path: Path) -> Rows:
    from prefiere.data.json_document import Document

    for number, value in Document(f, path, MAX_RECORD, WRAPPERS).records():
        yield number, _as_row(value)


def _csv(f: io.BufferedReader, path: Path) -> Rows:
    """CSV with a header; commas, semicolons or tabs, as Excel's ``sep=`` says, else what the header has most of."""
    csv.field_size_limit(MAX_RECORD)
    header, start = f.peek(_HEAD)[:_HEAD].split(b"\n")[0], 1
    if told := _SEPARATOR.fullmatch(header.strip()):
        f.readline()
        delimiter, start = told[1].decode(), 2
    else:
        delimiter = max(",;\t", key=lambda d: header.count(d.encode()))
    remarks: list[Remark] = []
    reader = csv.reader(_csv_lines(f, path, start, remarks), delimiter=delimiter, strict=True)
    skipped = start - 1
    try:
        names = [n.strip() for n in next(reader)]
        refuse_twins(names, f"{path}:{start}")
        start = reader.line_num + skipped + 1
        for cells in reader:
            while remarks:
                yield start, remarks.pop()
            if len(cells) == len(names):
                yield start, {name: cell_text(cell) for name, cell in zip(names, cells, strict=True)}
            elif cells:
                detail = f"expected {count_of(len(names), 'cell')}, found {len(cells)}; is a quote missing?"
                yield start, BadRow("line", "wrong number of cells", detail)
            start = reader.line_num + skipped + 1
    except csv.Error as e:
        raise DataError(in_words("data.broken_csv", path=path, line=start, why=e)) from e


_SEPARATOR = re.compile(rb'"?sep=(.)"?', re.IGNORECASE)


def _csv_lines(f: BinaryIO, path: Path, number: int, remarks: list[Remark]) -> Iterator[str]:
    """The lines of a CSV file: UTF-8, or Windows-1252 as Excel writes it where no line before was beyond ASCII.

    That is a guess, and goes to ``remarks``.
    """
    encoding, beyond_ascii = "utf-8", False
    for at, line in enumerate(_lines(f), number):
        if isinstance(line[1], BadRow):
            raise DataError(f"{path}:{at} (line): {line[1].detail}")
        try:
            decoded = line[1].decode(encoding)
            if encoding == "cp1252" and not line[1].isascii() and _is_utf8(line[1]):
                detail = "mixed encodings: this line is UTF-8, an earlier one is not; convert the file to UTF-8"
                raise DataError(f"{path}:{at} (line): {detail}")
        except UnicodeDecodeError as e:
            if beyond_ascii:
                raise DataError(f"{path}:{at} (line): {_not_utf8(line[1], e)}") from e
            encoding = "cp1252"
            decoded = line[1].decode(encoding, "replace")
            remarks.append(Remark(f"{path.name} is not UTF-8 and read as Windows-1252: see whether its letters fit"))
        beyond_ascii = beyond_ascii or not line[1].isascii()
        yield decoded


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


# -- tables -----------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as f:
            for batch in f.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {k: without_nulls(v) for k, v in row.items()}
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: damaged Parquet after row {number}: {str(e).splitlines()[0]}") from e


def _arrow(path: Path) -> Rows:
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as f:
            stream = f.read(6) != b"ARROW1"
            f.seek(0)
            if stream:
                batches: Iterator[Any] = iter(pa.ipc.open_stream(f))
            else:
                file = pa.ipc.open_file(f)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
            for batch in batches:
                for start in range(0, batch.num_rows, 256):
                    for row in batch.slice(start, 256).to_pylist():
                        number += 1
                        yield number, {k: without_nulls(v) for k, v in row.items()}
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: damaged Arrow file after row {number}: {str(e).splitlines()[0]}") from e
