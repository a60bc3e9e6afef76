"""Files in files: what is compressed or a workbook is opened as it is read; what is no data is named for what it is."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, datetime
from itertools import repeat, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from prefiere.asked.language import count_of
from prefiere.data.values import BadRow, DataError, Remark, Row

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes of compressed files."""

ZIP = b"PK\x03\x04"
_BEGINS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst", ZIP: "zip"}

# How files begin that hold no rows, and what to do about it.
_NO_DATA = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, which names the data and does not hold it; fetch it: git lfs pull",
    ),
    (b"SQLite format 3\0", "an SQLite database that is no store of votes; export its table, for example as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file (.xls); save it as .xlsx or .csv"),
    (b"\x89PNG", "an image (PNG)"),
    (b"\xff\xd8\xff", "an image (JPEG)"),
    (b"GIF8", "an image (GIF)"),
    (b"RIFF", "an image or a sound (RIFF)"),
    (b"BM", "an image (BMP)"),
    (b"%PDF", "a PDF document"),
    (b"\x80\x04", "a pickle, and loading one runs code; save the data as JSONL or Parquet"),
    (b"\x80\x05", "a pickle, and loading one runs code; save the data as JSONL or Parquet"),
    (b"\x93NUMPY", "a NumPy array; save the data as JSONL or Parquet"),
    (b"<!DOCTYPE", "a web page, not the data that it shows; download the file itself"),
    (b"<!doctype", "a web page, not the data that it shows; download the file itself"),
    (b"<html", "a web page, not the data that it shows; download the file itself"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
)


def packed_as(head: bytes) -> str | None:
    """How a file that begins so is compressed; None where it is not."""
    return next((name for begin, name in _BEGINS.items() if head.startswith(begin)), None)


def refuse_what_is_no_data(path: Path, head: bytes) -> None:
    """Raise DataError for a file that holds no rows, with what it is and what to do."""
    for begin, what in _NO_DATA:
        if head.startswith(begin) and not (begin == b"BM" and head.isascii() and b"," in head):
            raise DataError(f"{path}: this is {what}")


def is_sheet(path: Path) -> bool:
    """Whether a zip file is an Excel workbook."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except zipfile.BadZipFile:
        return False


@contextmanager
def unpacked(path: Path, how: str) -> Iterator[tuple[BinaryIO, str]]:
    """The contents of a compressed file as a stream, and the suffix of what is in it. Raises DataError where a zip file
    holds several files, or the file is damaged."""
    suffix = path.with_suffix("").suffix
    if how == "zip":
        try:
            with zipfile.ZipFile(path) as archive:
                name = _only_file(path, archive)
                with archive.open(name) as inside:
                    yield inside, Path(name).suffix  # type: ignore[misc]
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as e:
            raise DataError(f"{path}: the zip file cannot be read ({e}); unpack it") from e
        return
    with _stream(path, how) as stream:
        yield stream, suffix


def _stream(path: Path, how: str) -> Any:
    if how == "zst":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    openers: dict[str, Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    return openers[how](path, "rb")


def _only_file(path: Path, archive: zipfile.ZipFile) -> str:
    names = [
        i.filename
        for i in archive.infolist()
        if not i.is_dir() and not i.filename.startswith("__MACOSX/") and not Path(i.filename).name.startswith(".")
    ]
    if len(names) != 1:
        raise DataError(
            f"{path}: {count_of(len(names), 'file')} in this zip file ({', '.join(names[:3])}, ...); unpack it"
        )
    return names[0]


DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
"""What reading a damaged compressed file raises."""


# -- workbooks ---------------------------------------------------------------------------------------------------------


IN_A_CELL = 32_767
"""Characters: Excel keeps no more in a cell."""
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")


def sheet_rows(path: Path) -> Iterator[tuple[int, Row | BadRow | Remark]]:
    """The first sheet of an Excel workbook that holds anything: a header, and a row below it for each record."""
    with ExitStack() as opened:
        book = _opened(path, opened)
        formulas = _opened(path, opened, values=False) if _has_formulas(path) else None
        names: list[str] = []
        for sheet in book.worksheets:
            rest, wide = bool(names), sheet.max_column or 0
            for number, values, lacking in _cells_of(sheet, formulas):
                if not rest and names:
                    for i in lacking:
                        yield (
                            number,
                            Remark(_LACKING.format(column=names[i] if i < len(names) else f"(column {i + 1})")),
                        )
                if not any(v is not None for v in values):
                    continue
                if rest:
                    yield number, Remark(f"sheet not read: {sheet.title}")
                    break
                if not names:
                    values += [None] * (wide - len(values))
                    names = [f"(column {i})" if v is None else str(v).strip() for i, v in enumerate(values, 1)]
                    refuse_twins(names, f"{path}:{number}")
                    continue
                if any(isinstance(v, str) and len(v) >= IN_A_CELL for v in values):
                    detail = f"a cell holds {IN_A_CELL:,} characters, the most that Excel keeps: it is probably cut off"
                    yield number, BadRow("line", "cut off by Excel", detail, content=True)
                    continue
                if any(v is not None for v in values[len(names) :]):
                    detail = f"expected {count_of(len(names), 'cell')}, found {len(values)}; a column has no name"
                    yield number, BadRow("line", "wrong number of cells", detail)
                    continue
                yield number, dict(zip_longest(names, values[: len(names)]))


_LACKING = (
    "column {column} holds formulas whose values the workbook lacks: these cells are read as empty; save it in Excel "
    "or LibreOffice, which computes them"
)


def _opened(path: Path, opened: ExitStack, *, values: bool = True) -> Any:
    """A workbook that is closed with ``opened``. values: of formulas their values, else the formulas themselves."""
    from openpyxl import load_workbook

    try:
        book = load_workbook(path, read_only=True, data_only=values)
    except Exception as e:  # openpyxl raises whatever its parsers do
        raise DataError(f"{path}: the workbook cannot be read ({e}); save it again, or as .csv") from e
    opened.callback(book.close)
    return book


def _has_formulas(path: Path) -> bool:
    """Whether a sheet of a workbook may hold a formula; not to be sure of it costs time alone."""
    with zipfile.ZipFile(path) as archive:
        return any(
            _FORMULA.search(archive.read(name)) for name in archive.namelist() if name.startswith("xl/worksheets/")
        )


_FORMULA = re.compile(rb"<(\w+:)?f[\s/>]")


def _cells_of(sheet: Any, formulas: Any) -> Iterator[tuple[int, list[Any], list[int]]]:
    """Number and values of each row, and which of its cells hold a formula without its value. One that gives an empty
    text has it: its type says so. Rows are read whatever size the file claims, which some programs write wrongly."""
    sheet.reset_dimensions()
    others: Iterator[Sequence[Any]] = repeat(())
    if formulas is not None:
        formulas[sheet.title].reset_dimensions()
        others = formulas[sheet.title].iter_rows(values_only=True)
    for number, (cells, written) in enumerate(zip(sheet.iter_rows(), others, strict=False), 1):
        lacking = [
            i
            for i, (cell, formula) in enumerate(zip(cells, written, strict=False))
            if formula is not None and cell.value is None and cell.data_type != "str"
        ]
        yield number, [_of_sheet(c.value) for c in cells], lacking


def _of_sheet(value: Any) -> Any:
    """A cell: its text, number or time as text; None for an empty one."""
    if isinstance(value, str):
        return cell_text(_ESCAPED.sub(lambda m: chr(int(m[1], 16)), value))
    if isinstance(value, date | datetime):
        return value.isoformat()
    return value


def cell_text(cell: str) -> str | None:
    """The text of a cell; None for an empty one, and for what pandas writes where there is nothing."""
    return None if cell in ("", "nan", "NaN") else cell


def refuse_twins(names: Sequence[str], where: str) -> None:
    """Raise DataError where two columns have the same name."""
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise DataError(f"{where} ({twice}): two columns have this name; rename one")
