"""Where the prompt ends: transcripts as turns, and the prompt that two answers share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from prefiere.data.schema import Message, Text
from prefiere.data.values import BadRow

# -- transcripts ------------------------------------------------------------------------------------------------------

# A dialogue written out, as HH-RLHF does it, and with one line break or hashes before each speaker.
_SPEAKERS = {"Human": "user", "User": "user", "Assistant": "assistant", "System": "system"}
_STYLES = (
    re.compile(r"(?:\A\s*|\n\n)(System|Human|Assistant):"),
    re.compile(r"(?:\A\s*|\n)(System|Human|Assistant):"),
    re.compile(r"(?:\A\s*|\s*)### ?(System|Human|User|Assistant):"),
)
_ASKS = ("\n\nAssistant:", "\nAssistant:", "### Assistant:")
_BEGINS = ("Human:", "System:", "### Human:", "### User:", "### System:", "###Human:")


def _style_of(value: Any) -> re.Pattern[str] | None:
    if not isinstance(value, str):
        return None
    head = value[:80].lstrip()
    if not head.startswith(_BEGINS):
        return None
    if head.startswith("###"):
        return _STYLES[2] if "### Assistant:" in value or "###Assistant:" in value else None
    found = next((s for s, asks in zip(_STYLES, _ASKS, strict=True) if asks in value), None)
    return found if found is None or head.startswith("Human:") or "Human:" in value else None


def is_transcript(value: Any) -> bool:
    r"""Whether text is a dialogue in the form of HH-RLHF: "\n\nHuman: ...\n\nAssistant: ..."."""
    return _style_of(value) is not None


def transcript(value: str) -> tuple[Message, ...]:
    """The turns of such a dialogue, with the whitespace around each turn removed."""
    style = _style_of(value)
    parts = style.split(value) if style is not None else []
    turns = [Message(_SPEAKERS[speaker], body.strip()) for speaker, body in zip(parts[1::2], parts[2::2], strict=True)]
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
