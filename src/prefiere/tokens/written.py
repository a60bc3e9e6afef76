"""Did everything come back? What a chat template leaves out of the conversation that it was given.

Templates drop what they do not know, without a word: calls of tools, reasoning, tools, roles. For each kind of
conversation marks are written in the place of what is said, once, and looked for in what is rendered. And what each
message says is looked for in each record, since some templates cut a text by what it contains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefiere.data.schema import REASONING

Talk = Sequence[Mapping[str, Any]]

LEFT_OUT = {
    "reasoning": "reasoning_left_out",
    "calls": "calls_left_out",
    "tools": "tools_left_out",
    "system": "system_left_out",
    "developer": "developer_left_out",
    "tool": "results_left_out",
}
"""What may be left out of a conversation, and the name under which it is counted."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a template leaves out: of the last message (content, calls, reasoning), and of those before it.

    before: keys of `LEFT_OUT`, or the role of a message whose content is gone.
    """

    last: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()


NOTHING = Missing()


_MOST = 10_000  # kinds of conversations that are kept in mind


class Marks:
    """Finds out, once for each kind of conversation, what a template leaves out. render: raises nothing, None where
    the template refuses."""

    def __init__(self, render: Callable[[list[dict[str, Any]], Any], str | None]):
        self._render = render
        self._known: dict[tuple[Any, ...], Missing] = {}

    def missing(self, talk: Talk, tools: Sequence[Mapping[str, Any]]) -> Missing:
        """What is left out of a conversation of this kind."""
        said = [m["role"] if m["content"] and len(m) == 2 else None for m in talk]
        plain = (bool(tools), *said)  # most conversations are of this kind, which is quick to tell
        found = self._known.get(plain) if None not in said else None
        if found is not None:
            return found
        key = (bool(tools), "kinds", *_kinds(talk))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._probe(talk, tools)
        if None not in said and len(self._known) < _MOST:
            self._known[plain] = found
        return found

    def _probe(self, talk: Talk, tools: Sequence[Mapping[str, Any]]) -> Missing:
        marks: dict[str, tuple[int, str]] = {}
        marked = [_marked(i, m, marks) for i, m in enumerate(talk)]
        described = [_marked_tool(t, marks) for t in tools]
        text = self._render(marked, described)
        if text is None:
            return NOTHING
        gone = [at for mark, at in marks.items() if mark not in text]
        last = len(talk) - 1
        return Missing(
            frozenset(what for i, what in gone if i == last),
            frozenset(talk[i]["role"] if what == "content" else what for i, what in gone if i != last),
        )


def _kinds(talk: Talk) -> list[tuple[Any, ...]]:
    """The kind of each message, with what repeats for the third time left out."""
    kinds: list[tuple[Any, ...]] = []
    for m in talk:
        beside = tuple(k for k in ("tool_calls", *REASONING) if m.get(k)) if len(m) > 2 else ()
        kinds.append((m["role"], bool(m["content"]), beside))
        for n in (1, 2):
            if len(kinds) >= 3 * n and kinds[-n:] == kinds[-2 * n : -n] == kinds[-3 * n : -2 * n]:
                del kinds[-n:]
    return kinds


def _marked(i: int, message: Mapping[str, Any], marks: dict[str, tuple[int, str]]) -> dict[str, Any]:
    def mark(what: str) -> str:
        made = f"Mk{len(marks)}kM"
        marks[made] = (i, what)
        return made

    made = dict(message)
    if str(message["content"] or "").strip():
        made["content"] = mark("content")
    for key in REASONING:
        if isinstance(message.get(key), str) and message[key].strip():
            made[key] = mark("reasoning")
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        made["tool_calls"] = [_marked_call(c, mark) for c in calls]
    return made


def _marked_call(call: Any, mark: Callable[[str], str]) -> Any:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    function = dict(call["function"]) | {"name": mark("calls")}
    given = function.get("arguments")
    if given and isinstance(given, str):
        function["arguments"] = json.dumps({"x": mark("calls")})
    elif given and isinstance(given, Mapping):
        function["arguments"] = {"x": mark("calls")}
    return {**call, "function": function}


def _marked_tool(tool: Mapping[str, Any], marks: dict[str, tuple[int, str]]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or "name" not in function:
        return dict(tool)
    made = f"Mk{len(marks)}kM"
    marks[made] = (-1, "tools")
    return {**tool, "function": {**function, "name": made}}


def says(text: str, content: str) -> bool:
    """Whether a text holds all of a content, white space apart."""
    said = content.strip()
    return said in text or "".join(said.split()) in "".join(text.split())


def left_of(text: str, content: str) -> str | None:
    """What a rendered text lacks of a message's content: nothing (None), its "reasoning", or its "content"."""
    if says(text, content):
        return None
    thought, closed, said = content.rpartition("</think>")
    if not closed or not says(text, said):
        return "content"
    return None if says(text, thought.replace("<think>", "")) else "reasoning"
