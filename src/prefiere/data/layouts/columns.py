"""What every layout is made of: the columns that decide, where the prompt is, and what is stated beside answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from prefiere.data.schema import Comparison, Demonstration, Judgement, Kind, Message, PreferencePair, Prompt, Text
from prefiere.data.values import BadRow, finite_number, message_list, need, required_text, text, wrong_type

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
    """A way to lay out records: the columns that decide, a further condition, and how a row is parsed."""

    name: str
    holds: Kind
    fields: tuple[str, ...]
    parse: Callable[[RowMap], Iterator[Native]]
    when: Callable[[RowMap], bool] | None = None

    def fits(self, row: RowMap) -> bool:
        """Whether a row has the columns, and values as they should be."""
        try:
            return all(row.get(f) is not None for f in self.fields) and (self.when is None or self.when(row))
        except BadRow:
            return False


Context: TypeAlias = Callable[[RowMap], Text | None]


def with_system(row: RowMap, prompt: Text) -> Text:
    """The prompt with the ``system`` column before it, if there is one."""
    system = row.get("system")
    if not system or not (isinstance(prompt, str) or not prompt or prompt[0].role != "system"):
        return prompt
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return (Message("system", required_text(system, "system")), *turns)


def given(field: str = "prompt") -> Context:
    """Raw text or messages, as they stand."""
    return lambda row: with_system(row, text(need(row, field), field))


def implicit(row: RowMap) -> None:
    """No prompt column: it is what the two answers begin with."""
    return


def conversation(field: str) -> Context:
    """Messages up to the answer."""
    return lambda row: with_system(row, message_list(need(row, field), field))


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
            turns += [
                Message("user", required_text(turn[0], "history")),
                Message("assistant", required_text(turn[1], "history")),
            ]
        return with_system(row, (*turns, Message("user", f"{asked}\n{more}" if more.strip() else asked)))

    return build


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
