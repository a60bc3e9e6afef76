"""What every layout is made of: the columns that decide, where the prompt is, and what is stated beside answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from prefiere.data.layouts.names import SYSTEM
from prefiere.data.messages import message_list, text
from prefiere.data.schema import Comparison, Demonstration, Judgement, Kind, Message, PreferencePair, Prompt, Text
from prefiere.data.values import BadRow, finite_number, need, required_text, wrong_type

RowMap: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Several answers to one prompt, each with its rank (1 is best; equal ranks are ties)."""

    prompt: Text
    answers: tuple[tuple[float, Text], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


Native: TypeAlias = PreferencePair | Comparison | Ranking | Judgement | Demonstration | Prompt


@dataclass(frozen=True)
class Layout:
    """A way to lay out records: the columns that decide, a further condition, and how a row is parsed.

    guesses: what the prompt or the answer is was not stated by a name, so that a text column that is not read may be
    it. decide: the layout once all rows of its source, lazily, said what the values of a column mean. remark: what was
    taken for granted in reading it.
    """

    name: str
    holds: Kind
    fields: tuple[str, ...]
    parse: Callable[[RowMap], Iterator[Native]]
    when: Callable[[RowMap], bool] | None = None
    guesses: bool = False
    decide: Callable[[Iterable[RowMap], str], Layout] | None = None
    remark: str = ""

    def fits(self, row: RowMap) -> bool:
        """Whether a row has the columns, and values as they should be."""
        try:
            return all(row.get(f) is not None for f in self.fields) and (self.when is None or self.when(row))
        except BadRow:
            return False


Context: TypeAlias = Callable[[RowMap], Text | None]


def system_of(row: RowMap) -> str | None:
    """The row's system message, under any of its names."""
    said = next((row[k] for k in SYSTEM if row.get(k)), None)
    return None if said is None else required_text(said, "system")


def under_system(native: Native, row: RowMap, note: Callable[[str], None]) -> Native:
    """The record with the system column before its prompt; its texts become messages where they were none.

    ``note`` is told where the conversation has a system message of its own, which stays.
    """
    system = system_of(row)
    if system is None or native.prompt == "" or not native.prompt:
        return native
    prompt = native.prompt
    if not isinstance(prompt, str) and prompt[0].role in ("system", "developer"):
        if prompt[0].content.strip() != system.strip():
            note("system column left out, the conversation has its own")
        return native
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    texts = {
        name: (Message("assistant", value),)
        for name in ("chosen", "rejected", "completion", "answer_a", "answer_b")
        if isinstance(value := getattr(native, name, None), str)
    }
    if isinstance(native, Ranking):
        spoken = ((rank, (Message("assistant", a),) if isinstance(a, str) else a) for rank, a in native.answers)
        texts["answers"] = tuple(spoken)  # type: ignore[assignment]
    return replace(native, prompt=(Message("system", system), *turns), **texts)  # type: ignore[arg-type]


_ANSWERS = ("chosen", "rejected", "completion", "answer_a", "answer_b")
_GREETING, _QUESTION = 20, 10  # characters: an answer may well begin with a shorter prompt ("Hello"), or ask "Why?"


def without_repeated_prompt(native: Native, note: Callable[[str], None]) -> Native:
    """The record with answers that repeat their prompt, all of them, cut behind it; ``note`` is told."""
    prompt = native.prompt if isinstance(native.prompt, str) else native.prompt[-1].content if native.prompt else ""
    shortest = _QUESTION if prompt.endswith(("?", "？", "؟")) else _GREETING
    if len(prompt) < shortest or isinstance(native, Prompt | Ranking):
        return native
    rests: dict[str, Text] = {}
    for name in _ANSWERS:
        answer = getattr(native, name, None)
        if answer is None:
            continue
        said = answer if isinstance(answer, str) else answer[0].content if len(answer) == 1 else ""
        rest = said[len(prompt) :]
        if not said.startswith(prompt) or not rest.strip() or (rest[0].isalnum() and prompt[-1].isalnum()):
            return native
        begins = rest.lstrip()[0]
        if len(prompt) < _GREETING and (begins.islower() or not begins.isalnum()):
            return native  # "Was it you? she said" goes on with what it quotes
        rests[name] = rest if isinstance(answer, str) else (replace(answer[0], content=rest.lstrip()),)
    note("prompt cut off answers that repeat it")
    return replace(native, **rests)  # type: ignore[arg-type]


def said_by(value: object) -> str | None:
    """Who preferred an answer, as text; None where the data does not say."""
    return None if value is None else str(value)


def asked_text(value: Any, field: str) -> Text:
    """A prompt: raw text, messages, or an object that holds the text in full (WebGPT)."""
    if isinstance(value, Mapping) and isinstance(value.get("full_text"), str):
        return str(value["full_text"])
    return text(value, field)


def given(field: str = "prompt") -> Context:
    """Raw text or messages, as they stand."""
    return lambda row: asked_text(need(row, field), field)


def implicit(row: RowMap) -> None:
    """No prompt column: it is what the two answers begin with."""
    return


def conversation(field: str) -> Context:
    """Messages up to the answer."""
    return lambda row: message_list(need(row, field), field)


def instruction(field: str) -> Context:
    """One user turn, Alpaca style: ``input`` on the next line, and ``history`` turns before it."""

    def build(row: RowMap) -> Text:
        asked = asked_text(need(row, field), field)
        if not isinstance(asked, str):
            return asked
        more = next((said for k in ("input", "context") if k != field and k in row and (said := _said(row[k], k))), "")
        turns = []
        for turn in row.get("history") or ():
            if isinstance(turn, str) or len(turn) != 2:
                raise wrong_type("history", "pairs [question, answer]", turn)
            turns += [
                Message("user", required_text(turn[0], "history")),
                Message("assistant", required_text(turn[1], "history")),
            ]
        return (*turns, Message("user", f"{asked}\n{more}" if more else asked))

    return build


def _said(value: Any, field: str) -> str:
    """What stands beside an instruction: text, a number; "" where nothing does."""
    if isinstance(value, str):
        return value if value.strip() else ""
    if value is None or isinstance(value, bool) or (isinstance(value, Mapping | Sequence) and not value):
        return ""
    if not isinstance(value, int | float):
        raise wrong_type(field, f"text (write it as text, or leave it out: columns={{{field}: none}})", value)
    return f"{value:g}" if isinstance(value, float) else str(value)


_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)


def margin(row: RowMap) -> float | None:
    """The stated reward difference: ``margin``, or the difference of the two scores."""
    stated = finite_number(row.get("margin"), "margin")
    if stated is not None:
        return stated
    for better, worse in _SCORES:
        high, low = finite_number(row.get(better), better), finite_number(row.get(worse), worse)
        if high is not None and low is not None:
            return high - low
    return None


def weight(row: RowMap) -> float:
    """The ``weight`` column, 1 where there is none. Raises BadRow below 0."""
    value = finite_number(row.get("weight"), "weight")
    if value is None:
        return 1.0
    if value < 0:
        raise BadRow("weight", "wrong type in weight", f"expected 0 or more, found {value}")
    return value
