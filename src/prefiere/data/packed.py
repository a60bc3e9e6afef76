"""Files in files: what is compressed is opened as it is read, and what is no data is named for what it is."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from prefiere.data.values import DataError

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
        raise DataError(f"{path}: {len(names)} files in this zip file ({', '.join(names[:3])}, ...); unpack it")
    return names[0]


DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
"""What reading a damaged compressed file raises."""
