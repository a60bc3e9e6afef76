"""From the values found in data files to typed text: messages, roles, transcripts, shared prompts, flags, numbers.

Every layout stands on these few functions, so that a message is read in one way whoever wrote it. Anything that cannot
be used raises `BadRow`, which names the field; the reader adds file and line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prefiere.data.schema import Message, Text

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


# What data sets call the roles of a chat template. Others (tool, developer, ...) are left for the template to judge.
ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}


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


def _content(value: Any, field: str) -> str:
    """Text of a message: a string, nothing, or a list of parts of which each is text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and "parts" in value:
        value = value["parts"]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise wrong_type(field, "text", value)
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
    if any(not isinstance(t, str) for t in texts):
        raise BadRow(field, "not text", "a message holds something other than text (an image?)", content=True)
    return "\n".join(map(str, texts))


def message(value: Any, field: str) -> Message:
    """One turn: {role, content}, ShareGPT's {from, value} or Gemini's {role, parts}. Other keys go to ``extra``."""
    if not isinstance(value, Mapping):
        raise wrong_type(field, "a message {role, content}", value)
    role_key = "role" if "role" in value else "from"
    body_key = next((k for k in ("content", "value", "parts") if k in value), None)
    role = value.get(role_key)
    if not isinstance(role, str):
        raise BadRow(field, f"message without role in {field}", f"a message has no role; it has {', '.join(value)}")
    extra = {k: v for k, v in value.items() if k not in (role_key, body_key, "extra_json")}
    if isinstance(value.get("extra_json"), str):  # how `formats.write` keeps free-form keys in Parquet
        extra |= json.loads(value["extra_json"])
    if body_key is None and not extra:
        raise BadRow(field, f"message without content in {field}", f"the {role} message has no content")
    name = role.strip().lower()
    return Message(ROLES.get(name, name), _content(value.get(body_key) if body_key else None, field), extra)


def message_list(value: Any, field: str) -> tuple[Message, ...]:
    """A conversation: a list of messages, or one message by itself."""
    if value is None:
        raise BadRow(field, f"empty {field}", content=True)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise wrong_type(field, "a list of messages", value)
    return tuple(message(m, field) for m in value)


def text(value: Any, field: str) -> Text:
    """Raw text, or messages."""
    return value if isinstance(value, str) else message_list(value, field)


def is_messages(value: Any) -> bool:
    """Whether a value looks like messages rather than text."""
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
    return isinstance(first, Mapping) and ("role" in first or "from" in first)


# -- transcripts ------------------------------------------------------------------------------------------------------

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_transcript(value: Any) -> bool:
    r"""Whether text is a dialogue in the form of HH-RLHF: "\n\nHuman: ...\n\nAssistant: ..."."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def transcript(value: str) -> tuple[Message, ...]:
    """The turns of such a dialogue, with the whitespace around each turn removed."""
    parts = _TURN.split(value)
    turns = [
        Message("user" if speaker == "Human" else "assistant", body.strip())
        for speaker, body in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return tuple(turns)


# -- where the prompt ends --------------------------------------------------------------------------------------------

_BREAKS = "\n\t。？！：，、"


def split_strings(a: str, b: str) -> tuple[str, tuple[str, str]]:
    """The prompt that two raw texts share, and what follows it.

    The common prefix is cut back to where both go on with a new word, so that no word is torn: just before a space
    (which goes with the answer, as tokenizers want it), or just after a line break or a full-width stop. Neither rest
    is empty.
    """
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    n = min(common, len(a) - 1, len(b) - 1)
    while n > 0 and not (a[n - 1] in _BREAKS or a[n] == b[n] == " "):
        n -= 1
    if n <= 0 or not a[:n].strip():
        raise BadRow("chosen, rejected", "no common prompt", "the two texts do not begin alike", content=True)
    return a[:n], (a[n:], b[n:])


def split_conversations(
    conversations: Sequence[tuple[Message, ...]],
) -> tuple[tuple[Message, ...], tuple[tuple[Message, ...], ...]]:
    """The prompt that conversations share, and each one's continuation.

    The prompt is the common leading messages up to the last point at which all go on with an assistant turn. Where they
    part earlier than the last turn, the continuations have several turns.
    """
    first = conversations[0]
    n = min(len(c) for c in conversations)
    common = next((i for i in range(n) if any(c[i] != first[i] for c in conversations)), n)
    n = min(common, n - 1)
    while n > 0 and any(c[n].role != "assistant" for c in conversations):
        n -= 1
    if n <= 0:
        detail = "the two conversations do not begin with the same prompt"
        raise BadRow("chosen, rejected", "no common prompt", detail, content=True)
    return first[:n], tuple(c[n:] for c in conversations)


def settle(prompt: Text | None, a: Text, b: Text) -> tuple[Text, Text, Text]:
    """A prompt and two answers in one form: all raw text, or all messages; the prompt found where it is not given.

    Answers that repeat the prompt (whole conversations) lose it. Transcripts become messages.
    """
    if isinstance(a, str) and isinstance(b, str) and (prompt is None or isinstance(prompt, str)):
        if is_transcript(a) and is_transcript(b):
            a, b = transcript(a), transcript(b)
        elif prompt is None:
            shared, (a, b) = split_strings(a, b)
            return shared, a, b
        elif not is_transcript(prompt):
            return prompt, a, b
    answers = [_answer(a, is_transcript(prompt)), _answer(b, is_transcript(prompt))]
    if not all(answers):
        raise BadRow("the first answer" if not answers[0] else "the second answer", "empty answer", content=True)
    if prompt is None:
        lead, (a, b) = split_conversations(answers)
        return lead, a, b
    context = _context(prompt)
    answers = [x[len(context) :] if len(x) > len(context) and x[: len(context)] == context else x for x in answers]
    whole = [x[0].role != "assistant" for x in answers]
    if not any(whole):
        return context, answers[0], answers[1]
    if not all(whole):
        side = "the first answer" if whole[0] else "the second answer"
        detail = f"{side} repeats the prompt, the other does not"
        raise BadRow(side, "one answer repeats the prompt", detail, content=True)
    lead, (a, b) = split_conversations(answers)
    said = {m.content.strip() for m in lead if m.role == "user"}
    if context and context[-1].content.strip() not in said:
        detail = "the prompt is not what the messages begin with; columns={'prompt': None} takes the messages"
        raise BadRow("prompt", "prompt differs from the messages", detail, content=True)
    return lead, a, b


def _answer(text: Text, stripped: bool) -> tuple[Message, ...]:
    if not isinstance(text, str):
        return text
    return (Message("assistant", text.strip() if stripped else text),)


def _context(prompt: Text) -> tuple[Message, ...]:
    """A prompt as messages; a transcript's last, still empty, assistant turn is not part of it."""
    if not isinstance(prompt, str):
        return prompt
    if not is_transcript(prompt):
        return (Message("user", prompt),)
    turns = transcript(prompt)
    return turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content else turns


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
    if not math.isfinite(result):
        raise BadRow(field, f"wrong type in {field}", f"expected a finite number, found {value}")
    return result


def tools(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Tool descriptions: a list of objects, or the same as JSON text."""
    value = row.get("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as e:
            raise BadRow("tools", "wrong type in tools", f"not JSON: {e}") from None
    if not value:
        return ()
    if not isinstance(value, Sequence) or not all(isinstance(t, Mapping) for t in value):
        raise wrong_type("tools", "a list of objects", value)
    return tuple(value)


def moment(value: Any) -> str | None:
    """A time as ISO 8601: seconds since 1970 are converted, text is kept."""
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC).isoformat()
    return str(value)
