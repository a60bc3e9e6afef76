"""From the values found in data files to messages: roles, contents in parts, tool calls and masks in any spelling.

Every layout reads its messages here, so that a message is read in one way whoever wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefiere.data.schema import Message, Text
from prefiere.data.values import BadRow, as_flag, literal, without_nulls, wrong_type

# What data sets call the roles of a chat template. Others (tool, developer, ...) are left for the template to judge.
ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "llm": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
}
_CALLING = {"function_call", "tool_call", "tool_calls"}  # roles of a turn that is a call and nothing else
KNOWN_ROLES = {"user", "assistant", "system", "developer", "tool", *ROLES, *_CALLING}

_BODIES = ("content", "value", "parts", "text", "message")
# What other tools call the mask of a turn: the first are true where it is learnt, the others where it is not.
_LEARNT = ("weight", "train", "loss", "loss_weight", "trainable", "train_on_turn", "loss_mask", "training")
_MASKED = ("masked", "mask", "is_masked")
_REASONING = ("thinking", "reasoning", "reasoning_content")
_FOR_TEMPLATES = (
    "name",
    "tool_calls",
    "function_call",
    "tool_call_id",
    "tool_plan",
    "citations",
    "channel",
    "recipient",
)
MESSAGE_KEYS = frozenset(
    ("role", "from", "replies", "extra_json", *_BODIES, *_LEARNT, *_MASKED, *_REASONING, *_FOR_TEMPLATES)
)
"""Keys of a message that are read, or that chat templates write."""
# Numbers and flags about a turn that are no masks.
_ABOUT = {"id", "idx", "index", "turn", "rank", "score", "toxic", "redacted", "deleted", "synthetic", "prefix"}
_TEXTS = (None, "text", "input_text", "output_text")
_SEEN_OR_HEARD = re.compile("image|video|audio|file|document|inline_?data", re.IGNORECASE)


# -- parts of a message -----------------------------------------------------------------------------------------------


@dataclass
class _Body:
    """What the content of a message holds."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)


def _body(value: Any, where: str) -> _Body:
    """A string, nothing, or parts: text, thinking, calls of tools and their results, in the spelling of any tool."""
    found = _Body()
    if isinstance(value, Mapping) and "parts" in value:
        value = value["parts"]
    if value is None:
        return found
    if isinstance(value, str | Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise wrong_type(where, "text", value)
    for part in value:
        _add_part(found, part, where)
    return found


def _add_part(found: _Body, part: Any, where: str) -> None:
    if isinstance(part, str):
        found.texts.append(part)
        return
    if not isinstance(part, Mapping):
        raise wrong_type(where, "a part of a message", part)
    kind = part.get("type")
    said = next((part[k] for k in ("text", "value", "content") if isinstance(part.get(k), str)), None)
    if kind in _REASONING or part.get("thought") is True:
        said = next((part[k] for k in _REASONING if isinstance(part.get(k), str)), said)
        if said is not None:
            found.reasoning.append(said)
            return
    if kind in _TEXTS and said is not None:
        found.texts.append(said)
        return
    called = part if kind == "tool_use" else part.get("functionCall") or part.get("function_call")
    if kind in _CALLING and called is None:
        called = said if said is not None else part
    if called is not None:
        found.calls += _calls(called, where)
        return
    answered = part if kind == "tool_result" else part.get("functionResponse") or part.get("function_response")
    if isinstance(answered, Mapping):
        found.results.append(_result(answered, where))
        return
    named = ", ".join([str(kind)] if kind is not None else map(str, part))
    if _SEEN_OR_HEARD.search(named):
        detail = f"a message holds something to see or hear ({named}), which is not read: leave such examples out"
        raise BadRow(where, "not text", detail, content=True)
    raise BadRow(where, "unknown part", f"a message holds a part that is not known ({named})")


def _result(value: Mapping[str, Any], where: str) -> Message:
    """What a tool answered, as a turn of its own."""
    content = value.get("content", value.get("response"))
    if isinstance(content, Mapping) and "type" not in content and "text" not in content:
        content = json.dumps(content, ensure_ascii=False)
    named = {"tool_call_id": value.get("tool_use_id"), "name": value.get("name")}
    return Message("tool", "".join(_body(content, where).texts), {k: v for k, v in named.items() if v is not None})


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls of tools as templates read them: ``{type: function, function: {name, arguments}}``."""
    if isinstance(value, str):
        value = literal(value)
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, Sequence) or not all(isinstance(c, Mapping) for c in items):
        raise wrong_type(where, "calls of tools {name, arguments}", value)
    return [_call(without_nulls(dict(c)), where) for c in items]


def _call(value: dict[str, Any], where: str) -> dict[str, Any]:
    if isinstance(value.get("function"), Mapping):
        return value
    name = value.get("name", value.get("function"))
    if not isinstance(name, str):
        detail = f"a call of a tool has no name; it has {', '.join(map(str, value)) or 'nothing'}"
        raise BadRow(where, "unknown call of a tool", detail)
    given: Any = next((value[k] for k in ("arguments", "parameters", "args", "input") if k in value), {})
    made: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": given}}
    return made | ({"id": value["id"]} if isinstance(value.get("id"), str) else {})


def _called(text: str, where: str) -> tuple[str, list[dict[str, Any]]]:
    """A turn that is a call written as JSON: what is said before it, and the call."""
    start = next((i for i, c in enumerate(text) if c in "[{"), None)
    if start is None:
        detail = "the turn that calls a tool holds no JSON object with a name and arguments"
        raise BadRow(where, "unknown call of a tool", detail)
    return text[:start].strip(), _calls(text[start:], where)


# -- one turn, and lists of them --------------------------------------------------------------------------------------


def turns(value: Any, where: str) -> list[Message]:
    """One message {role, content}, ShareGPT's {from, value} or Gemini's {role, parts}, as turns: results of tools
    that stand inside it are turns of their own. Other keys go to ``extra``."""
    if not isinstance(value, Mapping):
        raise wrong_type(where, "a message {role, content}", value)
    if isinstance(value.get("extra_json"), str):  # how `formats.write` keeps free-form keys in Parquet
        extra = literal(value["extra_json"])
        if not isinstance(extra, Mapping):
            raise wrong_type(f"{where}[].extra_json", "the JSON of an object", value["extra_json"])
        value = {**{k: v for k, v in value.items() if k != "extra_json"}, **extra}
    role_key = "role" if "role" in value else "from"
    role = value.get(role_key)
    if not isinstance(role, str):
        raise BadRow(where, f"message without role in {where}", f"a message has no role; it has {', '.join(value)}")
    if value.get("replies"):
        detail = "a tree of messages: a message has replies of its own; write each path as a list of messages"
        raise BadRow(where, "a tree of messages", detail)
    role = role.strip().lower()
    calling, role = role in _CALLING, "assistant" if role in _CALLING else ROLES.get(role, role)
    body_key = next((k for k in _BODIES if value.get(k) is not None), None)
    body_key = body_key or next((k for k in _BODIES if k in value), None)
    extra = _extra(value, {role_key, body_key, *_LEARNT, *_MASKED}, where)
    if body_key is None and not Message(role, "", extra).speaks:
        has = ", ".join(k for k in value if k != role_key) or "nothing else"
        raise BadRow(where, f"message without content in {where}", f"the {role} message has no content; it has {has}")
    if calling and isinstance(value[body_key] if body_key else None, str):
        before, calls = _called(value[body_key], where)
        return [Message(role, before, extra | {"tool_calls": calls}, _learnt(value, role, where))]
    body = _body(value[body_key] if body_key else None, where)
    if body.reasoning:
        extra["reasoning_content"] = "".join(body.reasoning)
    if body.calls:
        extra["tool_calls"] = [*extra.get("tool_calls", ()), *body.calls]
    said = Message(role, "".join(body.texts), extra, _learnt(value, role, where))
    return [*body.results, *([said] if said.content or not body.results else [])]


def _extra(value: Mapping[str, Any], taken: set[str | None], where: str) -> dict[str, Any]:
    """The further keys of a message, without nulls; calls of tools in the spelling of templates."""
    extra = {k: without_nulls(v) for k, v in value.items() if v is not None and k not in taken}
    extra.pop("replies", None)
    for key in ("tool_calls", "function_call"):
        if not extra.get(key):
            extra.pop(key, None)
    if "function_call" in extra:  # OpenAI's name before there were several
        extra["tool_calls"] = _calls(extra.pop("function_call"), where)
    elif "tool_calls" in extra:
        extra["tool_calls"] = _calls(extra["tool_calls"], where)
    return extra


def _learnt(value: Mapping[str, Any], role: str, where: str) -> bool:
    """Whether a turn of the assistant is learnt, as the masks of other tools say it: weight, train, masked."""
    if role != "assistant":
        return True
    learnt = True
    for key, said in value.items():
        if said is None or key in _ABOUT or (key in MESSAGE_KEYS and key not in _LEARNT and key not in _MASKED):
            continue
        known = as_flag(said)
        if key in MESSAGE_KEYS and known is None:
            detail = f"{key}={str(said)[:20]}: a turn is learnt (1, true) or not (0, false), nothing between"
            raise BadRow(where, f"unknown {key} of a turn", detail)
        if key not in MESSAGE_KEYS and isinstance(said, bool | int) and known is not None:
            detail = (
                f"the assistant's turn has {key}={said}: if it says whether the turn is learnt, call it weight (1 or 0)"
            )
            raise BadRow(where, f"unknown {key} of a turn", f"{detail}; if it does not, leave it out")
        if key in MESSAGE_KEYS:
            learnt = learnt and known is (key in _LEARNT)
    return learnt


def message(value: Any, where: str) -> Message:
    """One turn. Raises BadRow where it holds several."""
    (*others, said) = turns(value, where)
    if others:
        raise wrong_type(where, "one message", value)
    return said


def message_list(value: Any, where: str) -> tuple[Message, ...]:
    """A conversation: a list of messages, or one message by itself."""
    if value is None:
        raise BadRow(where, f"empty {where}", content=True)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise wrong_type(where, "a list of messages", value)
    return tuple(turn for m in value for turn in turns(m, where))


def text(value: Any, where: str) -> Text:
    """Raw text, or messages."""
    if isinstance(value, str):
        return value
    if value is not None and not isinstance(value, Mapping | Sequence):
        raise wrong_type(where, "text or messages", value)
    return message_list(value, where)


def is_messages(value: Any) -> bool:
    """Whether a value looks like messages rather than text."""
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
    return isinstance(first, Mapping) and ("role" in first or "from" in first)
