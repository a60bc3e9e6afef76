"""Layouts that state which of two answers was preferred: TRL, HH-RLHF, UltraFeedback, Alpaca, ShareGPT, Axolotl, ...

They differ in where the prompt is and how messages are spelt; everything else is `pair`. The order is from the most to
the least specific: the first that fits is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from prefiere.data.schema import Comparison, Demonstration, Judgement, Message, PreferencePair, Text
from prefiere.data.values import (
    BadRow,
    is_messages,
    is_transcript,
    messages,
    need,
    number,
    plain,
    settle,
    text,
    tools,
    wrong_type,
)

Kind: TypeAlias = Literal["pairs", "comparisons", "judgements", "demonstrations", "prompts"]
RowMap: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Several answers to one prompt, each with its rank (1 is best; equal ranks are ties)."""

    prompt: Text
    answers: tuple[tuple[float, Text], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Something to answer: what sampling and comparisons start from."""

    prompt: Text
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""


Native: TypeAlias = PreferencePair | Comparison | Ranking | Judgement | Demonstration | Prompt


@dataclass(frozen=True)
class Layout:
    """A way to lay out records: the columns that decide, a further condition, and how a row is parsed.

    ``strength_unit`` is full strength in the data's own units: a pair's margin is ``strength * strength_unit``.
    """

    name: str
    holds: Kind
    fields: tuple[str, ...]
    parse: Callable[[RowMap], Iterator[Native]]
    when: Callable[[RowMap], bool] | None = None
    strength_unit: float = 1.0

    def fits(self, row: RowMap) -> bool:
        """Whether a row has the columns, and values as they should be."""
        try:
            return all(row.get(f) is not None for f in self.fields) and (self.when is None or self.when(row))
        except BadRow:
            return False


# -- where the prompt is ----------------------------------------------------------------------------------------------

Context: TypeAlias = Callable[[RowMap], Text | None]


def with_system(row: RowMap, prompt: Text) -> Text:
    """The prompt with the ``system`` column before it, if there is one."""
    system = row.get("system")
    if not system or not (isinstance(prompt, str) or not prompt or prompt[0].role != "system"):
        return prompt
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return (Message("system", plain(system, "system")), *turns)


def given(field: str = "prompt") -> Context:
    """Raw text or messages, as they stand."""
    return lambda row: with_system(row, text(need(row, field), field))


def implicit(row: RowMap) -> None:
    """No prompt column: it is what the two answers begin with."""
    return


def conversation(field: str) -> Context:
    """Messages up to the answer."""
    return lambda row: with_system(row, messages(need(row, field), field))


def instruction(field: str) -> Context:
    """One user turn, Alpaca style: ``input`` on the next line, ``history`` turns and a ``system`` message before it."""

    def build(row: RowMap) -> Text:
        asked = text(need(row, field), field)
        if not isinstance(asked, str):
            return with_system(row, asked)
        more = next((row[k] for k in ("input", "context") if k != field and isinstance(row.get(k), str)), "")
        turns = []
        for turn in row.get("history") or ():
            if isinstance(turn, str) or len(turn) != 2:
                raise wrong_type("history", "pairs [question, answer]", turn)
            turns += [Message("user", plain(turn[0], "history")), Message("assistant", plain(turn[1], "history"))]
        return with_system(row, (*turns, Message("user", f"{asked}\n{more}" if more.strip() else asked)))

    return build


# -- pairs ------------------------------------------------------------------------------------------------------------

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)


def margin(row: RowMap) -> float | None:
    """The stated reward difference: ``margin``, or the difference of the two scores."""
    stated = number(row.get("margin"), "margin")
    if stated is not None:
        return stated
    for better, worse in _SCORES:
        high, low = number(row.get(better), better), number(row.get(worse), worse)
        if high is not None and low is not None:
            return high - low
    return None


def weight(row: RowMap) -> float:
    """The ``weight`` column, 1 where there is none. Raises BadRow below 0."""
    value = number(row.get("weight"), "weight")
    if value is None:
        return 1.0
    if value < 0:
        raise BadRow("weight", "wrong type in weight", f"expected 0 or more, found {value}")
    return value


def pair(context: Context, chosen: str = "chosen", rejected: str = "rejected") -> Callable[[RowMap], Iterator[Native]]:
    """A parser of one preferred and one rejected answer after a context."""

    def parse(row: RowMap) -> Iterator[Native]:
        good, bad = text(need(row, chosen), chosen), text(need(row, rejected), rejected)
        prompt, good, bad = settle(context(row), good, bad)
        soft = number(row.get("soft_label"), "soft_label")
        if soft is not None and not 0 <= soft <= 1:
            raise BadRow("soft_label", "wrong type in soft_label", f"expected a probability, found {soft}")
        yield PreferencePair(
            prompt=prompt,
            chosen=good,
            rejected=bad,
            weight=weight(row),
            label=1.0 if soft is None else soft,
            margin=margin(row),
            tools=tools(row),
        )

    return parse


def _openai(row: RowMap) -> Iterator[Native]:
    """OpenAI, Together, Fireworks: the context and its tools are inside ``input``."""
    inside = need(row, "input")
    if not isinstance(inside, Mapping):
        raise wrong_type("input", "an object with messages", inside)
    context = messages(need(inside, "messages"), "input.messages")
    flat = {**row, "tools": inside.get("tools") or row.get("tools")}
    yield from pair(lambda _: context, "preferred_output", "non_preferred_output")(flat)


def _swift(row: RowMap) -> Iterator[Native]:
    """ms-swift: the messages end with the chosen answer; the rejected one replaces it."""
    turns = with_system(row, messages(need(row, "messages"), "messages"))
    if not turns or isinstance(turns, str) or turns[-1].role != "assistant":
        raise BadRow("messages", "no chosen answer", "the messages do not end with the chosen answer", content=True)
    if row.get("rejected_messages") is not None:
        yield from pair(implicit, "messages", "rejected_messages")(row)
        return
    good: Any = [turns[-1].as_dict()]
    yield from pair(lambda _: turns[:-1], "chosen", "rejected_response")({**row, "chosen": good})


def _chat_continues(row: RowMap) -> bool:
    """``chosen`` is the next turn after ``messages``, not a whole conversation by itself."""
    value = row["chosen"]
    return isinstance(value, str) or (is_messages(value) and messages(value, "chosen")[0].role == "assistant")


def _any_messages(row: RowMap) -> bool:
    return is_messages(row["chosen"]) or is_messages(row["rejected"]) or is_messages(row.get("prompt"))


def _layout(name: str, fields: str, parse: Callable[[RowMap], Iterator[Native]], **kwargs: Any) -> Layout:
    return Layout(name, "pairs", tuple(fields.split()), parse, **kwargs)


PAIRS = (
    _layout("OpenAI preference", "input preferred_output non_preferred_output", _openai),
    _layout(
        "torchtune",
        "chosen_conversations rejected_conversations",
        pair(implicit, "chosen_conversations", "rejected_conversations"),
    ),
    _layout("ms-swift", "messages rejected_response", _swift),
    _layout("ms-swift", "messages rejected_messages", _swift),
    _layout("ShareGPT ranking", "conversations chosen rejected", pair(conversation("conversations"))),
    _layout(
        "ultrafeedback_binarized",
        "prompt chosen rejected score_chosen score_rejected",
        pair(given()),
        when=_any_messages,
    ),
    _layout(
        "argilla ultrafeedback",
        "prompt chosen rejected chosen-rating rejected-rating",
        pair(given()),
        when=_any_messages,
    ),
    _layout("Axolotl chat", "messages chosen rejected", pair(conversation("messages")), when=_chat_continues),
    *(
        _layout(
            "Axolotl",
            f"{asked} chosen_response rejected_response",
            pair(instruction(asked), "chosen_response", "rejected_response"),
        )
        for asked in ("instruction", "question", "input", "prompt")
    ),
    _layout("TRL conversational", "prompt chosen rejected", pair(given()), when=_any_messages),
    _layout("TRL standard", "prompt chosen rejected", pair(given())),
    _layout("Alpaca pairwise", "instruction chosen rejected", pair(instruction("instruction"))),
    _layout("Axolotl", "question chosen rejected", pair(instruction("question"))),
    _layout("Axolotl", "input chosen rejected", pair(instruction("input"))),
    _layout(
        "HH-RLHF",
        "chosen rejected",
        pair(implicit),
        when=lambda row: is_transcript(row["chosen"]) and is_transcript(row["rejected"]),
    ),
    _layout("TRL conversational, implicit prompt", "chosen rejected", pair(implicit), when=_any_messages),
    _layout("TRL standard, implicit prompt", "chosen rejected", pair(implicit)),
)
