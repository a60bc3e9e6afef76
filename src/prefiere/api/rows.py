"""Rows that a notebook holds, as JSON lines: a list of dicts or of texts, a pandas DataFrame, a datasets.Dataset.

Neither pandas nor datasets is imported here: who holds an object of theirs has done so.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from os import PathLike
from pathlib import Path
from typing import Any

from prefiere.data.schema import Kind
from prefiere.data.splits import ReadFor, choose_split
from prefiere.data.values import DataError, without_nulls
from prefiere.files import short

TAKEN = "a name (file, folder, hub id), a list of dicts, a pandas DataFrame or a datasets.Dataset"


@dataclass(frozen=True)
class Rows:
    """Rows in memory. key: the setting that they are given as. each: gives them, from the start each time.

    said: what is to be known of them. Raises DataError, while they are read, for what no file can hold.
    """

    key: str
    each: Callable[[], Iterator[Any]]
    said: str | None = None

    def lines(self) -> Iterator[bytes]:
        """Each row as a line of JSON."""
        for i, row in enumerate(self.each()):
            try:
                if isinstance(row, str):
                    value: Any = {"text": row}
                else:
                    names = _apart([self._name(k, i) for k in row], f"{self.key}[{i}]")
                    cells = zip(names, row.values(), strict=True)
                    value = {name: plain(v, f"{self.key}[{i}], column {name}") for name, v in cells}
                yield json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            except UnicodeEncodeError as e:
                what = f"a character that no text file holds (U+{ord(e.object[e.start]):04X})"
                raise DataError(f"{self.key}[{i}]: {what}; take it out") from None
            except RecursionError:
                raise DataError(f"{self.key}[{i}]: nested without end; flatten it") from None

    def _name(self, column: Any, row: int) -> str:
        if isinstance(column, str):
            return column
        if isinstance(column, int):
            return str(column)
        raise DataError(f"{self.key}[{row}]: {short(column)} is no name of a column; name it by a text")

    def digest(self) -> str:
        """A hash of all rows, 32 letters."""
        h = hashlib.blake2b(digest_size=16)
        for line in self.lines():
            h.update(line)
        return h.hexdigest()

    def write(self, path: Path) -> None:
        """Fill a file with them."""
        with path.open("wb") as f:
            f.writelines(self.lines())


def plain(value: Any, where: str) -> Any:
    """A value as JSON has it. Not a number, and pandas' own marks of a missing cell, are null.

    Raises DataError, saying where, for what JSON cannot hold.
    """
    if value is None or isinstance(value, str | bool | int) or type(value).__name__ in ("NAType", "NaTType"):
        return None if type(value).__name__ in ("NAType", "NaTType") else value
    if isinstance(value, float):
        if math.isinf(value):
            raise DataError(f"{where}: an infinite number; give a finite one, or None")
        return None if math.isnan(value) else float(value)
    if isinstance(value, Mapping):
        names = _apart([str(k) for k in value], where)
        return {name: plain(v, where) for name, v in zip(names, value.values(), strict=True)}
    if isinstance(value, list | tuple):
        return [plain(v, where) for v in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return plain(float(value), where)
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist(), where)
    what = f"{type(value).__name__} {short(value)}"
    raise DataError(f"{where}: {what} cannot be kept; give text, a number, true or false, a list or a dict")


def _apart(names: Sequence[str], where: str) -> Sequence[str]:
    """These names. Raises DataError where two columns have the same one as text: 1 and "1"."""
    if len(set(names)) < len(names):
        twice = min(n for n in names if names.count(n) > 1)
        raise DataError(f"{where}: several columns are called {twice}; rename or drop all but one")
    return names


def rows_of(
    value: Any, key: str, kind: Kind, *, split: str | None = None, purpose: ReadFor = "train"
) -> tuple[Rows | None, bool]:
    """The rows of a value that is no name, and whether ``split`` was used up in choosing them.

    Raises DataError for what holds no rows, or several splits of which none suits.
    """
    if value is None or isinstance(value, str | PathLike):
        return None, False
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return Rows(key, _frame(value, key)), False
    if datasets is not None and isinstance(value, datasets.DatasetDict):
        chosen = choose_split(list(value), kind, split, key, purpose)
        others = ", ".join(name for name in value if name != chosen)
        said = f"{key}: split {chosen}" + (f" (not read: {others})" if others else "")
        return Rows(key, _dataset(value[chosen], f"{key}[{chosen!r}]"), said), True
    if datasets is not None and isinstance(value, datasets.Dataset):
        return Rows(key, _dataset(value, key)), False
    if isinstance(value, list | tuple):
        return Rows(key, _list(value, key)), False
    hint = {
        "dict": "pandas.DataFrame(it), or a list with a dict for each row",
        "Series": "its list: it.tolist()",
        "IterableDataset": "as many rows as you want: list(it.take(1000))",
        "generator": "a list of it: list(it)",
        "Table": "a list of its rows: it.to_pylist()",
    }.get(type(value).__name__)
    what = f"{key} must be {TAKEN}, not {type(value).__name__} {short(value)}"
    raise DataError(f"{what}. Give {hint}." if hint else f"{what}.")


def _list(value: Sequence[Any], key: str) -> Callable[[], Iterator[Any]]:
    if not value:
        raise DataError(f"{key}: an empty list, without rows; give one dict for each row")
    first = str if isinstance(value[0], str) else Mapping
    for i, row in enumerate(value):
        if not isinstance(row, first):
            wanted = "a text" if first is str else "a dict of columns"
            raise DataError(f"{key}[{i}]: {type(row).__name__} {short(row)}, where {wanted} is expected")
    return lambda: iter(value)


def _frame(frame: Any, key: str) -> Callable[[], Iterator[Any]]:
    """Rows of a pandas DataFrame. What its index is named is a column as well."""
    if frame.columns.nlevels > 1:
        raise DataError(f"{key}: columns of several levels; flatten them: df.columns = ['_'.join(c) for c in df]")
    if frame.index.nlevels > 1 or frame.index.name is not None:
        levels = [f"level_{i}" if name is None else str(name) for i, name in enumerate(frame.index.names)]
        _apart([*levels, *map(str, frame.columns)], key)
        frame = frame.reset_index()
    names = list(frame.columns)
    _apart([str(n) for n in names], key)
    if not len(frame):
        raise DataError(f"{key}: a DataFrame without rows")
    return lambda: (
        {n: without_nulls(v) for n, v in zip(names, row, strict=True)} for row in frame.itertuples(False, None)
    )


def _dataset(dataset: Any, key: str) -> Callable[[], Iterator[Any]]:
    if not len(dataset):
        raise DataError(f"{key}: a Dataset without rows")
    as_python = dataset.with_format(None)
    return lambda: ({k: without_nulls(v) for k, v in row.items()} for row in as_python)
