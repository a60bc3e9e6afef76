"""Layouts that state which of two answers was preferred: TRL, HH-RLHF, UltraFeedback, Alpaca, ShareGPT, Axolotl, ...

They differ in where the prompt is and how messages are spelt; everything else is `pair_parser`. The order is from the
most to the least specific: the first that fits is taken.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prefiere.data.dialogues import is_transcript, settle
from prefiere.data.layouts.columns import (
    Context,
    Layout,
    Native,
    RowMap,
    conversation,
    given,
    implicit,
    instruction,
    margin,
    said_by,
    weight,
)
from prefiere.data.layouts.names import ASKED
from prefiere.data.messages import is_messages, message_list, text
from prefiere.data.schema import PreferencePair
from prefiere.data.values import BadRow, finite_number, need, tools, wrong_type


def pair_parser(
    context: Context, chosen: str = "chosen", rejected: str = "rejected"
) -> Callable[[RowMap], Iterator[Native]]:
    """A parser of one preferred and one rejected answer after a context."""

    def parse(row: RowMap) -> Iterator[Native]:
        good, bad = text(need(row, chosen), chosen), text(need(row, rejected), rejected)
        prompt, good, bad = settle(context(row), good, bad)
        soft = finite_number(row.get("soft_label"), "soft_label")
        if soft is not None and not 0 <= soft <= 1:
            raise BadRow("soft_label", "wrong type in soft_label", f"expected a probability, found {soft}")
        yield PreferencePair(
            prompt=prompt,
            chosen=good,
            rejected=bad,
            weight=weight(row),
            label=1.0 if soft is None else soft,
            margin=margin(row),
            annotator=said_by(row.get("annotator")),
            tools=tools(row),
        )

    return parse


def _openai(row: RowMap) -> Iterator[Native]:
    """OpenAI, Together, Fireworks: the context and its tools are inside ``input``."""
    inside = need(row, "input")
    if not isinstance(inside, Mapping):
        raise wrong_type("input", "an object with messages", inside)
    context = message_list(need(inside, "messages"), "input.messages")
    flat = beside(row, tools=inside.get("tools") or row.get("tools"))
    yield from pair_parser(lambda _: context, "preferred_output", "non_preferred_output")(flat)


def beside(row: RowMap, **fields: Any) -> RowMap:
    """The row with these fields in the place of its own; a column counts as read only where it is asked for."""
    return ChainMap(fields, row)  # type: ignore[arg-type]


def _swift(row: RowMap) -> Iterator[Native]:
    """ms-swift: the messages end with the chosen answer; the rejected one replaces it."""
    turns = message_list(need(row, "messages"), "messages")
    if not turns or turns[-1].role != "assistant":
        raise BadRow("messages", "no chosen answer", "the messages do not end with the chosen answer", content=True)
    if row.get("rejected_messages") is not None:
        yield from pair_parser(implicit, "messages", "rejected_messages")(row)
        return
    good: Any = [turns[-1].as_dict()]
    yield from pair_parser(lambda _: turns[:-1], "chosen", "rejected_response")(beside(row, chosen=good))


def _chat_continues(row: RowMap) -> bool:
    """``chosen`` is the next turn after ``messages``, not a whole conversation by itself."""
    value = row["chosen"]
    return isinstance(value, str) or (is_messages(value) and message_list(value, "chosen")[0].role == "assistant")


def _whole_conversations(row: RowMap) -> bool:
    """Both are conversations that begin with a prompt."""
    return all(is_messages(row[f]) and message_list(row[f], f)[0].role != "assistant" for f in ("chosen", "rejected"))


def _any_messages(row: RowMap) -> bool:
    return is_messages(row["chosen"]) or is_messages(row["rejected"]) or is_messages(row.get("prompt"))


def _layout(name: str, fields: str, parse: Callable[[RowMap], Iterator[Native]], **kwargs: Any) -> Layout:
    return Layout(name, "pairs", tuple(fields.split()), parse, **kwargs)


PAIRS = (
    _layout("OpenAI preference", "input preferred_output non_preferred_output", _openai),
    _layout(
        "torchtune",
        "chosen_conversations rejected_conversations",
        pair_parser(implicit, "chosen_conversations", "rejected_conversations"),
    ),
    _layout(
        "LLaMA-Factory v1",
        "chosen_messages rejected_messages",
        pair_parser(implicit, "chosen_messages", "rejected_messages"),
    ),
    _layout("ms-swift", "messages rejected_response", _swift),
    _layout("ms-swift", "messages rejected_messages", _swift),
    _layout("ShareGPT ranking", "conversations chosen rejected", pair_parser(conversation("conversations"))),
    _layout(
        "ultrafeedback_binarized",
        "prompt chosen rejected score_chosen score_rejected",
        pair_parser(given()),
        when=_any_messages,
    ),
    _layout(
        "argilla ultrafeedback",
        "prompt chosen rejected chosen-rating rejected-rating",
        pair_parser(given()),
        when=_any_messages,
    ),
    _layout("Axolotl chat", "messages chosen rejected", pair_parser(conversation("messages")), when=_chat_continues),
    *(
        _layout(
            "Axolotl",
            f"{asked} chosen_response rejected_response",
            pair_parser(instruction(asked), "chosen_response", "rejected_response"),
        )
        for asked in ("instruction", "question", "input", "prompt")
    ),
    _layout("TRL conversational", "prompt chosen rejected", pair_parser(given()), when=_any_messages),
    _layout("TRL standard", "prompt chosen rejected", pair_parser(given())),
    _layout("Alpaca pairwise", "instruction chosen rejected", pair_parser(instruction("instruction"))),
    *(
        _layout("Axolotl", f"{asked} chosen rejected", pair_parser(instruction(asked)))
        for asked in (*(a for a in ASKED if a not in ("prompt", "instruction")), "input")
    ),
    _layout(
        "HH-RLHF",
        "chosen rejected",
        pair_parser(implicit),
        when=lambda row: is_transcript(row["chosen"]) and is_transcript(row["rejected"]),
    ),
    _layout("TRL conversational, implicit prompt", "chosen rejected", pair_parser(implicit), when=_whole_conversations),
    _layout("TRL standard, implicit prompt", "chosen rejected", pair_parser(implicit), guesses=True),
)
