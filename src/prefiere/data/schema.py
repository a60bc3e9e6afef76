"""What people said, and what a loss eats: the typed records that every other room speaks in.

No torch here: collecting preferences and reading reports must work without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Preference: TypeAlias = Literal["a", "b", "tie", "both_bad"]


REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which a message holds what was thought before its content."""
SAID_BESIDE = ("tool_calls", *REASONING)
"""Keys of a message that say something besides its content."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. ``extra`` holds what a chat template may read besides (tool calls, a name).

    learnt: whether a turn of the assistant is learnt; otherwise it is context, as a turn of anybody else.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    learnt: bool = True

    @property
    def speaks(self) -> bool:
        """Whether the turn says anything: text, a call of a tool, or reasoning."""
        return bool(self.content.strip()) or any(self.extra.get(k) for k in SAID_BESIDE)

    def as_dict(self) -> dict[str, Any]:
        """The layout that ``tokenizer.apply_chat_template`` takes."""
        return {"role": self.role, "content": self.content, **self.extra}


Text: TypeAlias = str | tuple[Message, ...]
"""A prompt or an answer: raw text, or messages that go through the chat template."""


def question(prompt: Text) -> str:
    """What a person reads of a prompt: raw text, or its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1].content


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What somebody said about two answers to one prompt.

    ``strength`` is how sure they were, in (0, 1]; ``created_at`` is an ISO 8601 time; ``source`` says where the
    record was read (``file:line``).
    """

    prompt: Text
    answer_a: Text
    answer_b: Text
    preference: Preference
    strength: float | None = None
    annotator: str | None = None
    created_at: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """One comparison as a loss takes it.

    ``label`` is the probability that ``chosen`` is the preferred answer (1 for a plain pair, 0.5 for a tie);
    ``weight`` scales the pair's loss; ``margin`` is a reward difference that the data states, if it does;
    ``annotator`` is who preferred it, and ``chosen_first`` whether it was the first of the two, where the data says.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    weight: float = 1.0
    label: float = 1.0
    margin: float | None = None
    annotator: str | None = None
    chosen_first: bool | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One answer called desirable or not (unpaired feedback, KTO)."""

    prompt: Text
    completion: Text
    desirable: bool
    weight: float = 1.0
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One answer to imitate (SFT). Plain text without a prompt has ``prompt=""``.

    In a conversation every assistant turn of ``completion`` is learnt, everything else is context.
    """

    prompt: Text
    completion: Text
    weight: float = 1.0
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""


Record: TypeAlias = PreferencePair | Judgement | Demonstration


Kind: TypeAlias = Literal["pairs", "comparisons", "judgements", "demonstrations", "prompts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Something to answer: what sampling and comparisons start from."""

    prompt: Text
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""
