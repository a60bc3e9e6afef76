"""From the values in data files to flags, numbers, times, literals and tools, and what is raised for those of no use.

Anything that cannot be used raises `BadRow`, which names the field; the reader adds file and line.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prefiere.asked.words.account import counted

Row = dict[str, Any]


class DataError(ValueError):
    """Data that cannot be read: one line that names file, line and field, what was wrong, and what to do."""


class BadRow(Exception):
    """One row that cannot be used.

    ``reason`` is the short key under which it is counted, ``detail`` the sentence for people. ``content`` tells an
    example with nothing to learn from (an empty answer) from a damaged one (a missing column).
    """

    def __init__(self, field: str, reason: str, detail: str = "", *, content: bool = False):
        super().__init__(detail or reason)
        self.field, self.reason, self.detail, self.content = field, reason, detail or reason, content


@dataclass(frozen=True, slots=True)
class Remark:
    """What a reader did with a file that whoever owns it must know, in words; it stands between rows."""

    text: str


_AROUND = " \t\ufeff"


def refuse_a_header(row: Mapping[str, Any]) -> None:
    """Raises BadRow for a row that repeats the names of its columns, two or more, and holds nothing else: tables were
    put one after the other, each perhaps with the mark of its encoding (BOM)."""

    def repeats(name: str, value: Any) -> bool:
        return value is None or (isinstance(value, str) and value.strip(_AROUND) in ("", str(name).strip(_AROUND)))

    if all(repeats(name, value) for name, value in row.items()) and sum(map(bool, row.values())) > 1:
        raise BadRow("row", "header in the middle", "the row repeats the names of the columns", content=True)


def need(row: Mapping[str, Any], field: str) -> Any:
    """The value of a column that the layout cannot do without."""
    if field not in row:
        found = ", ".join(map(str, row)) or "none"
        raise BadRow(field, f"missing column {field}", f"the column is missing; found: {found}")
    return row[field]


def wrong_type(field: str, expected: str, value: Any) -> BadRow:
    """The error for a value of another type than expected."""
    return BadRow(
        field, f"wrong type in {field}", f"expected {expected}, found {type(value).__name__} {str(value)[:40]!r}"
    )


def required_text(value: Any, field: str) -> str:
    """A string that may not be absent."""
    if value is None:
        raise BadRow(field, f"empty {field}", content=True)
    if not isinstance(value, str):
        raise wrong_type(field, "text", value)
    return value


# -- scalars ----------------------------------------------------------------------------------------------------------

_FLAGS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def as_flag(value: Any) -> bool | None:
    """True or false, also written as 0/1 or text; None for anything else."""
    return _FLAGS.get(str(value).strip().lower())


def flag(value: Any, field: str) -> bool:
    """True or false. Raises BadRow at anything else."""
    known = as_flag(value)
    if known is None:
        raise wrong_type(field, "true or false", value)
    return known


def finite_number(value: Any, field: str) -> float | None:
    """A finite number, also written as text; None where there is none."""
    if value is None or value == "":
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise wrong_type(field, "a number", value) from None
    except OverflowError:
        raise BadRow(
            field, f"wrong type in {field}", f"expected a number, found one of {len(str(value))} digits"
        ) from None
    if not math.isfinite(result):
        raise BadRow(field, f"wrong type in {field}", f"expected a finite number, found {value}")
    return result


_LITERAL = 1 << 20  # characters of a Python literal that are parsed at most
_BETWEEN_ROWS = re.compile(r"\}\s*\n\s*\{")  # how numpy prints a list of objects; inside a string a break is escaped


def literal(text: str) -> Any:
    """The value of JSON, or of what Python prints of lists and objects; None for anything else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > _LITERAL:
        return None
    try:
        return ast.literal_eval(_BETWEEN_ROWS.sub("},\n{", text.strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def tools(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Descriptions of tools as templates read them, from a list of objects or the same as JSON text.

    A function by itself ({name, parameters}) is put into {type: function, function: ...}; nulls are left out.
    """
    value = row.get("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise BadRow("tools", "wrong type in tools", f"not JSON: {e}") from None
    if not value:
        return ()
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(t, Mapping) for t in value):
        raise wrong_type("tools", "a list of objects", value)
    return tuple(_tool(without_nulls(dict(t))) for t in value)


def _tool(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("name"), str) or "function" in value or value.get("type", "function") != "function":
        return value
    function = {k: v for k, v in value.items() if k != "type"}
    if "input_schema" in function and "parameters" not in function:  # Anthropic's name
        function["parameters"] = function.pop("input_schema")
    return {"type": "function", "function": function}


def without_nulls(value: Any) -> Any:
    """The value without the keys of its objects that hold null: what a table fills in where a record lacks them."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value


def moment(value: Any) -> str | None:
    """A time as ISO 8601: seconds since 1970 are converted, text is kept."""
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, int | float):
        try:
            return datetime.fromtimestamp(value, UTC).isoformat()
        except (OverflowError, OSError, ValueError):
            raise wrong_type("created_at", "a time in seconds since 1970", value) from None
    return str(value)


@dataclass
class Counts:
    """What became of the rows of one pass: rows read, records kept, and dropped or changed ones by reason."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """For data.json."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped), "changed": dict(self.changed)}

    def __str__(self) -> str:
        return counted(self.to_dict())
