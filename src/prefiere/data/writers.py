"""Write records as JSONL or Parquet in TRL's layouts; `formats.read` gives the same records back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefiere.data.convert import AnyRecord
from prefiere.data.schema import Comparison, Demonstration, Judgement, PreferencePair, Prompt, Text
from prefiere.files import atomic


def write(records: Iterable[AnyRecord], path: str | Path) -> int:
    """Write records to ``path`` (.jsonl or .parquet), atomically. Returns how many.

    Columns: prompt, chosen, rejected (and soft_label, margin); prompt, completion, label; prompt, completion; prompt,
    answer_a, answer_b, preference (and strength, annotator, created_at); each with weight and tools where they are not
    the default. ``source`` is not written. Parquet has no type for free-form keys: there tools and what a message holds
    besides role and content are JSON text, and all prompts and answers must be strings, or all messages.

    Raises ValueError at another suffix, at text that no file can hold, or at mixed forms in Parquet.
    """
    path = can_be_written(path)
    writers = {".jsonl": _write_jsonl, ".parquet": _write_parquet}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        return writers[path.suffix](records, temporary)


def can_be_written(path: str | Path) -> Path:
    """A path to `write` to. Raises ValueError, before anything is read or made, for one that cannot be written."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: write to a name that ends in .jsonl or .parquet")
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


def _write_jsonl(records: Iterable[AnyRecord], path: Path) -> int:
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for record in records:
            try:
                f.write(json.dumps(as_row(record), ensure_ascii=False, allow_nan=False, default=dict) + "\n")
            except ValueError as e:  # a lone surrogate, nan
                raise ValueError(f"record {count + 1} ({record.source or 'no source'}) cannot be written: {e}") from e
            count += 1
    return count


_TEXTS = ("prompt", "chosen", "rejected", "completion", "answer_a", "answer_b")
_NUMBERS = ("weight", "margin", "soft_label", "strength")


def _write_parquet(records: Iterable[AnyRecord], path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{k: _cell(k, v) for k, v in as_row(r).items()} for r in records]
    columns = list(dict.fromkeys(k for row in rows for k in row))
    chats = {isinstance(row[c], list) for row in rows for c in _TEXTS if c in row}
    if len(chats) > 1:
        raise ValueError(f"{path.name}: some texts are strings and others messages; write .jsonl, which takes both")
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra_json", pa.string())])
    if not any("extra_json" in m for row in rows for c in _TEXTS if isinstance(row.get(c), list) for m in row[c]):
        message = pa.struct([("role", pa.string()), ("content", pa.string())])

    def kind_of(column: str) -> pa.DataType:
        if column in _TEXTS:
            return pa.list_(message) if True in chats else pa.string()
        return pa.float64() if column in _NUMBERS else pa.bool_() if column == "label" else pa.string()

    schema = pa.schema([(c, kind_of(c)) for c in columns])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return len(rows)


def _cell(column: str, value: Any) -> Any:
    if column == "tools":
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=dict)
    return [_message(m) for m in value] if column in _TEXTS and isinstance(value, list) else value


def _message(value: Mapping[str, Any]) -> dict[str, Any]:
    plain = {"role": value["role"], "content": value["content"]}
    extra = {k: v for k, v in value.items() if k not in plain}
    return plain | ({"extra_json": json.dumps(extra, ensure_ascii=False, default=dict)} if extra else {})
