"""Every column is read, or named: what a layout asks its rows for, and what of them it leaves unread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prefiere.asked.language import in_words
from prefiere.data.layouts.columns import Layout
from prefiere.data.layouts.names import ANSWERS, likely, map_to_give, words_of
from prefiere.data.messages import MESSAGE_KEYS, is_messages
from prefiere.data.schema import Kind
from prefiere.data.values import DataError

# Words in the names of columns about a record, which hold neither a prompt nor an answer.
_ABOUT = {"id", "ids", "uuid", "url", "uri", "link", "license", "lang", "language", "model", "models", "date", "time",
          "timestamp", "created", "updated", "at", "split", "dataset", "subset", "category", "categories", "tag",
          "tags", "annotator", "worker", "hash", "file", "path", "filename", "index", "idx", "meta", "metadata",
          "version"}  # fmt: skip
_MARK = re.compile(r"[\w.:/+=-]*\d[\w.:/+=-]*|\w+://\S*|[\w.-]+/[\w./-]+")  # a number, a date, a hash, an address


class Asked(Mapping[str, Any]):
    """A row that knows which of its columns it was asked for."""

    def __init__(self, row: Mapping[str, Any]):
        self._row = row
        self.read: set[str] = set()

    def __getitem__(self, column: str) -> Any:
        self.read.add(column)
        return self._row[column]

    def __contains__(self, column: object) -> bool:
        return column in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


def holds_something(value: Any) -> bool:
    """Whether a cell is not empty."""
    return value is not None and value not in ("", [], {})


def keys_unread(row: Mapping[str, Any], columns: Iterable[str]) -> Iterator[str]:
    """The keys of messages in these columns that nobody reads, as ``messages[].context``."""
    for column in columns:
        value = row[column]
        for m in value if isinstance(value, list) and is_messages(value) else ():
            if isinstance(m, Mapping) and not m.keys() <= MESSAGE_KEYS:
                yield from (f"{column}[].{k}" for k, v in m.items() if k not in MESSAGE_KEYS and holds_something(v))


def is_prose(column: str, value: Any) -> bool:
    """Whether this may be a prompt, a context or an answer: messages, or text that is no name, number or address."""
    if is_messages(value):
        return True
    if not isinstance(value, str) or set(words_of(column)) & _ABOUT:
        return False
    said = value.strip()
    if not said or _MARK.fullmatch(said):
        return False
    return len(said.split()) > 1 or len(said) > 30 or not said.isascii()


def refuse_a_guess(
    layout: Layout, kind: Kind, unread: Sequence[str], rows: Sequence[Mapping[str, Any]], where: str
) -> None:
    """Raise DataError for a layout that guesses where the prompt is while columns of text are left unread."""
    texts = [c for c in unread if any(is_prose(c, row.get(c)) for row in rows)]
    if kind == "prompts" or layout.holds == "prompts":
        texts = [c for c in texts if not set(words_of(c)) & set(ANSWERS)]
    if not texts:
        return
    ours = "prompt" if "prompt" not in layout.fields else "system"
    if ours in texts and (empty := sum(not holds_something(row.get(ours)) for row in rows)):
        raise DataError(in_words("data.empty_cells", where=where, column=ours, n=f"{empty:,}", of=f"{len(rows):,}"))
    asked = likely(ours, texts) or texts[0]
    given: dict[str, str | None] = {ours: asked}
    if layout.fields == ("text",):
        given |= {"completion": "text", "text": None}
    hidden = map_to_give(dict.fromkeys(texts))
    raise DataError(
        in_words(
            "data.unread",
            where=where,
            columns=", ".join(texts),
            layout=layout.name,
            fields=", ".join(layout.fields),
            given=map_to_give(given),
            hidden=hidden,
        )
    )
