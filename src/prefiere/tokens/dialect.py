"""How a chat template wants to be spoken to: the form of a call's arguments, the day that it prints, its refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TemplateRefusal(ValueError):
    """The chat template cannot render a conversation."""


class LeftOut(TemplateRefusal):
    """The chat template leaves out what is to be learnt, or what it answers."""


class Rewritten(TemplateRefusal):
    """The chat template writes a conversation differently once it goes on: the prompt is not the beginning of it."""


Template: TypeAlias = Literal["auto", "always", "never"]


class Manner(TypedDict, total=False):
    """How text is written for a model, as `encoder.Encoder` takes it."""

    template: Template
    template_kwargs: Mapping[str, Any] | None
    day: date | None


CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "x"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "000000000", "function": {"name": "f", "arguments": {"k": "v"}}},
        ],
    },
]
"""A conversation that shows how a template writes arguments: as JSON, as Python, or not at all."""

_NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


def all_templates(tokenizer: PreTrainedTokenizerBase) -> str:
    """The source of a tokenizer's chat template, or of all of them where it has several."""
    found = tokenizer.chat_template
    return "\n".join(found.values()) if isinstance(found, dict) else str(found or "")


def tells_the_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template prints today's date."""
    return "strftime_now(" in all_templates(tokenizer)


def with_arguments(message: dict[str, Any], form: Literal["mapping", "text"]) -> dict[str, Any]:
    """A message whose calls of tools have their arguments as objects, or as the JSON of these."""

    def of(call: Any) -> Any:
        function = call.get("function") if isinstance(call, Mapping) else None
        given = function.get("arguments") if isinstance(function, Mapping) else None
        if form == "text" and isinstance(given, Mapping | list):
            given = json.dumps(given, ensure_ascii=False)
        elif form == "mapping" and isinstance(given, str):
            given = _decoded(given)
        else:
            return call
        return {**call, "function": {**(function or {}), "arguments": given}}

    calls = message.get("tool_calls")
    return {**message, "tool_calls": [of(c) for c in calls]} if isinstance(calls, list) else message


def dated(template: str, day: date) -> str:
    """A template with a day in the place of the clock."""
    return _NOW.sub(lambda m: repr(day.strftime(m[2])), template)


def _decoded(text: str) -> Any:
    """The object that a text is the JSON of; the text itself where it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text
