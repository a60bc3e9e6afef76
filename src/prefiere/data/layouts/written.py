"""Messages that were written as text, as CSV and tables hold them: JSON, or what Python prints of lists and objects.

Whether the texts of a column are conversations is told from its first rows, never from one cell: an answer may be JSON.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

from prefiere.data.messages import KNOWN_ROLES, is_messages
from prefiere.data.values import BadRow, Row, literal

_NAMED = re.compile(r"""["'](?:role|from|messages|conversations)["']\s*:""")
_ROLE = re.compile(rf"""["'](?:role|from)["']\s*:\s*["'](?:{"|".join(sorted(KNOWN_ROLES))})["']""", re.IGNORECASE)
_OPENS = frozenset("[{ \n\t")
_WHOLE = ("messages", "conversations", "conversation")
# Columns of layouts that hold objects, and the column beside which they do: `input` is text for everybody but OpenAI.
_OBJECTS_BESIDE = {
    "input": "preferred_output",
    "info": "summaries",
    "summaries": "choice",
    "extra": "summaries",
    "contents": "completions",
    "completions": "contents",
    "data": "annotations",
    "annotations": "data",
    "answers": "prompt",
}


def _conversation_in(text: str) -> tuple[Any, Any]:
    """The conversation that text is the JSON of, a list of messages or an object with one, and the tools beside it.

    Raises ValueError for a conversation that is cut off.
    """
    if text[:1] not in _OPENS or text.lstrip()[:1] not in ("[", "{") or not _NAMED.search(text):
        return None, None
    found: Any = literal(text)
    tools: Any = None
    if found is None and _ROLE.search(text):
        raise ValueError("it holds messages as text that is neither JSON nor what Python prints of them")
    if isinstance(found, Mapping):
        whole = found
        found, tools = next((whole[k] for k in _WHOLE if is_messages(whole.get(k))), None), whole.get("tools")
    known = isinstance(found, list) and all(map(is_messages, found)) and bool(found)
    role = str(found[0].get("role", found[0].get("from"))).strip().lower() if known else ""
    return (found, tools) if role in KNOWN_ROLES else (None, None)


def prose_columns(rows: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The columns that hold prose at least as often as conversations: JSON in one of them is what somebody says."""
    prose, talks = Counter[str](), Counter[str]()
    for row in rows:
        for column, value in row.items():
            if not isinstance(value, str) or not (said := value.strip()):
                continue
            if said[0] not in "[{":
                prose[column] += 1
                continue
            with suppress(ValueError):  # one that is cut off says nothing
                talks[column] += _conversation_in(value)[0] is not None
    return frozenset(column for column, n in prose.items() if n >= talks[column])


def decoded(row: Mapping[str, Any], prose: Container[str] = ()) -> Row:
    """The row with messages that were written as text decoded, and "nan" and nan taken for nothing.

    prose: columns whose texts are never messages (`prose_columns`). Raises BadRow for text that is messages and cannot
    be decoded.
    """
    made: Row = {}
    for column, value in row.items():
        if isinstance(value, str):
            if value[:1] in _OPENS and value.lstrip()[:1] in ("[", "{"):
                made |= _from_text(column, value, row, prose)
        elif isinstance(value, float) and value != value:
            made[column] = None
    return {**row, **made} if made else cast(Row, row)


def _from_text(column: str, value: str, row: Mapping[str, Any], prose: Container[str]) -> Row:
    if _OBJECTS_BESIDE.get(column) in row:
        found = literal(value)
        return {column: found} if _holds_objects(found) else {}
    if column in prose:
        return {}
    try:
        found, tools = _conversation_in(value)
    except ValueError as e:
        raise BadRow(column, f"messages as text in {column}", f"{e} (is it cut off?)") from None
    if found is None:
        return {}
    return {column: found} | ({"tools": tools} if tools and not row.get("tools") else {})


def _holds_objects(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)
    )
