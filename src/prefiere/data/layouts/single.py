"""Layouts with one answer: called good or bad (KTO), or to be imitated (SFT); and layouts that hold prompts only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prefiere.data.dialogues import settle
from prefiere.data.layouts.columns import Context, Layout, Native, RowMap, conversation, given, instruction, weight
from prefiere.data.layouts.names import ASKED, words_of
from prefiere.data.messages import text
from prefiere.data.schema import Demonstration, Judgement, Kind, Message, Prompt, Text
from prefiere.data.values import BadRow, as_flag, need, required_text, tools, wrong_type


def answered(context: Context, field: str) -> Callable[[RowMap], tuple[Text, Text]]:
    """The prompt, and the answer in another column."""

    def build(row: RowMap) -> tuple[Text, Text]:
        prompt, answer = context(row), text(need(row, field), field)
        if prompt == "":
            return "", answer
        prompt, answer, _ = settle(prompt, answer, answer)
        return prompt, answer

    return build


def last_turn(field: str) -> Callable[[RowMap], tuple[Text, Text]]:
    """A conversation: everything before the last assistant turn, and that turn."""

    def build(row: RowMap) -> tuple[Text, Text]:
        turns = conversation(field)(row)
        assert isinstance(turns, tuple)
        if not turns or turns[-1].role != "assistant":
            raise BadRow(field, "ends without an answer", "the conversation does not end with an answer", content=True)
        return turns[:-1], turns[-1:]

    return build


def all_turns(field: str) -> Callable[[RowMap], tuple[Text, Text]]:
    """A conversation: everything before the first assistant turn that answers somebody, and the rest."""

    def build(row: RowMap) -> tuple[Text, Text]:
        turns = conversation(field)(row)
        assert isinstance(turns, tuple)
        asked = next((i for i, m in enumerate(turns) if m.role == "user"), 0)
        first = next((i for i, m in enumerate(turns) if i >= asked and m.role == "assistant"), len(turns))
        return turns[:first], turns[first:]

    return build


_GOOD = {"good", "up", "like", "liked", "desirable", "accepted", "helpful", "thumbsup"}
_POOR = {"bad", "down", "dislike", "disliked", "undesirable", "rejected", "unhelpful", "thumbsdown"}
_SCALES = (("1", "-1"), ("+1", "-1"), ("1.0", "-1.0"), ("y", "n"), ("correct", "incorrect"), ("correct", "wrong"),
           ("right", "wrong"), ("pass", "fail"), ("👍", "👎"))  # fmt: skip
"""What else is written for good and bad, where nothing but these two is: as classes, such words mean something else."""
_SAID_BESIDE = {"thumb", "thumbs", "answer", "response"}


def _called_good(value: Any) -> bool | None:
    """Whether an answer is called good (true, 1, good, thumbs_up, liked, ...) or bad; None for anything else."""
    if (known := as_flag(value)) is not None or not isinstance(value, str) or len(value) > 40:
        return known
    said = set(words_of(value)) - _SAID_BESIDE
    return None if len(said) != 1 or not said <= _GOOD | _POOR else said <= _GOOD


def scale_of(values: Iterable[Any]) -> tuple[str, str] | None:
    """The words for good and bad that are all of these values, both of them; None where there is no such scale."""
    said = {str(v).strip().lower() for v in values if v is not None and v != ""}
    return next((scale for scale in _SCALES if said == set(scale)), None)


def on_scale(rows: Sequence[RowMap]) -> Layout | None:
    """The layout of single answers whose verdicts are on a scale of their own; None where these rows have none."""
    for column in _CALLED:
        scale = scale_of(row.get(column) for row in rows)
        for field, answer in (*_GIVEN, *_INSTRUCTED) if scale is not None else ():
            if all(row.get(f) is not None for row in rows for f in (field, answer)):
                context = given() if (field, answer) in _GIVEN else instruction(field)
                parse = judged(answered(context, answer), column, scale)
                return Layout("TRL unpaired (KTO)", "judgements", (field, answer, column), parse)
    return None


def judged(
    split: Callable[[RowMap], tuple[Text, Text]], verdict: str, scale: tuple[str, str] | None = None
) -> Callable[[RowMap], Iterator[Native]]:
    """A parser of one answer that the column ``verdict`` calls good or bad, by the words of ``scale`` where there is
    one."""

    def parse(row: RowMap) -> Iterator[Native]:
        prompt, completion = split(row)
        said = need(row, verdict)
        word = str(said).strip().lower()
        good = _called_good(said) if scale is None else word == scale[0] if word in scale else None
        if good is None:
            raise wrong_type(verdict, "true or false, or good or bad", said)
        yield Judgement(prompt=prompt, completion=completion, desirable=good, weight=weight(row), tools=tools(row))

    return parse


def demonstrated(split: Callable[[RowMap], tuple[Text, Text]]) -> Callable[[RowMap], Iterator[Native]]:
    """A parser of one answer to imitate."""

    def parse(row: RowMap) -> Iterator[Native]:
        prompt, completion = split(row)
        yield Demonstration(prompt=prompt, completion=completion, weight=weight(row), tools=tools(row))

    return parse


def asked(context: Context) -> Callable[[RowMap], Iterator[Native]]:
    """A parser of a prompt alone."""

    def parse(row: RowMap) -> Iterator[Native]:
        prompt = context(row)
        yield Prompt(prompt="" if prompt is None else prompt, tools=tools(row))

    return parse


def _whole_text(row: RowMap) -> tuple[Text, Text]:
    """Plain text without a prompt; messages under this name are a conversation."""
    value = need(row, "text")
    if value is None or isinstance(value, str):
        return "", required_text(value, "text")
    return all_turns("text")(row)


def _as_user(field: str) -> Context:
    def build(row: RowMap) -> Text | None:
        value = instruction(field)(row)
        return (Message("user", value),) if isinstance(value, str) else value

    return build


def _layout(
    name: str,
    holds: Kind,
    fields: str,
    parse: Callable[[RowMap], Iterator[Native]],
    verdict: str = "",
    guesses: bool = False,
) -> Layout:
    if not verdict:
        return Layout(name, holds, tuple(fields.split()), parse, guesses=guesses)
    # a class label 0..4, or another word, is not a verdict
    return Layout(name, holds, (*fields.split(), verdict), parse, lambda row: _called_good(row[verdict]) is not None)


# Where a prompt and one answer stand.
_GIVEN = (("prompt", "completion"), ("prompt", "response"))
_INSTRUCTED = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    *((q, a) for q in ASKED[3:] for a in ("response", "answer", "completion", "output", "solution")),
    ("input", "output"),
)
_CALLED = ("kto_tag", "label", "feedback", "thumbs", "desirable")

SINGLE = (
    *(
        _layout("TRL unpaired (KTO)", "judgements", f"{q} {a}", judged(answered(given(), a), verdict), verdict)
        for q, a in _GIVEN
        for verdict in _CALLED
    ),
    *(
        _layout("ShareGPT KTO", "judgements", field, judged(last_turn(field), verdict), verdict)
        for field in ("conversations", "messages")
        for verdict in _CALLED
    ),
    *(
        _layout("Alpaca KTO", "judgements", f"{q} {a}", judged(answered(instruction(q), a), verdict), verdict)
        for q, a in _INSTRUCTED
        for verdict in _CALLED
    ),
    *(_layout(f"{q} and {a}", "demonstrations", f"{q} {a}", demonstrated(answered(given(), a))) for q, a in _GIVEN),
    _layout("messages", "demonstrations", "messages", demonstrated(all_turns("messages"))),
    _layout("ShareGPT", "demonstrations", "conversations", demonstrated(all_turns("conversations"))),
    *(
        _layout("Alpaca", "demonstrations", f"{q} {a}", demonstrated(answered(instruction(q), a)))
        for q, a in _INSTRUCTED
    ),
    _layout("prompts", "prompts", "prompt", asked(given()), guesses=True),
    *(_layout("prompts", "prompts", q, asked(_as_user(q)), guesses=True) for q in ASKED if q != "prompt"),
    _layout("text", "demonstrations", "text", demonstrated(_whole_text), guesses=True),
)
