"""Texts of any kind of data: one answer or one prompt everywhere, and questions in the place of answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from prefiere.data.convert import AnyRecord
from prefiere.data.quality.faults import Faults
from prefiere.data.schema import Demonstration, Judgement, Message, PreferencePair, Text
from prefiere.doctor.case import Finding
from prefiere.doctor.rules.data import findings_of


def found(records: Iterable[AnyRecord], preferences: bool = True) -> dict[str, Finding]:
    faults = Faults()
    for record in records:
        faults.add(record)
    return {f.key: f for f in findings_of({"audit": {"faults": faults.to_dict()}}, preferences=preferences)}


def record(kind: str, i: int, prompt: Text, answer: str) -> AnyRecord:
    """Of a pair the other answer is a sound one of its own."""
    if kind == "pairs":
        return PreferencePair(prompt=prompt, chosen=answer, rejected=f"A worse answer, number {i}.", source=f"d:{i}")
    if kind == "singles":
        return Judgement(prompt=prompt, completion=answer, desirable=True, source=f"d:{i}")
    return Demonstration(prompt=prompt, completion=answer, source=f"d:{i}")


KINDS = ["pairs", "singles", "demonstrations"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "severity"), [(0.15, None), (0.3, "warning"), (0.6, "bad")])
def test_one_answer_everywhere(kind: str, share: float, severity: str | None) -> None:
    """As where a placeholder was left in: from a fifth on, and bad from half on."""
    rows = [
        record(kind, i, f"What is thing {i}?", "TODO: write it." if i < 60 * share else f"It is {i}.")
        for i in range(60)
    ]
    said = found(rows, kind != "demonstrations")
    assert (said["one_text"].severity if "one_text" in said else None) == severity
    if severity is not None:
        assert "TODO: write it." in said["one_text"].evidence[0]


def test_a_bad_answer_that_many_share_is_not_learnt() -> None:
    rows = [Judgement(prompt=f"What is {i}?", completion=f"It is {i}." if i % 2 else "No.", desirable=bool(i % 2))
            for i in range(60)]  # fmt: skip
    assert "one_text" not in found(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "said"), [(0.15, False), (0.3, True), (1.0, True)])
def test_one_prompt_everywhere(kind: str, share: float, said: bool) -> None:
    """A system text in the place of what was asked, or "nan"."""
    rows = [record(kind, i, "nan" if i < 60 * share else f"What is thing {i}?", f"It is {i}.") for i in range(60)]
    seen = found(rows, kind != "demonstrations")
    assert ("one_prompt" in seen) is said
    assert "one_prompt" not in found(rows[:19], kind != "demonstrations")  # few, as somebody tries it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompts", "answers", "said"),
    [(0.0, 0.5, True), (0.0, 0.35, False), (0.5, 0.75, False), (0.3, 0.75, True), (0.8, 0.0, False), (0.0, 1.0, True)],
)
def test_questions_in_the_place_of_answers(kind: str, prompts: float, answers: float, said: bool) -> None:
    """Shares that end with a question mark: two in five of the answers, and 30% more than of the prompts."""
    rows = [
        record(
            kind,
            i,
            f"That is thing {i}" + ("?" if i < 60 * prompts else "."),
            f"So {i}" + ("？" if i < 60 * answers else "."),
        )
        for i in range(60)
    ]
    seen = found(rows, kind != "demonstrations")
    assert ("exchanged" in seen) is said
    if said:
        assert (seen["exchanged"].severity, seen["exchanged"].lines[0]) == ("warning", "d:0")


@pytest.mark.parametrize(("share", "said"), [(0.05, False), (0.2, True)])
def test_an_answer_that_stands_last_in_the_prompt(share: float, said: bool) -> None:
    """Roles that were exchanged."""

    def prompt(i: int) -> Any:
        turns = (Message("user", f"What is {i}?"), Message("assistant", "That?"))
        return turns if i < 60 * share else turns[:1]

    seen = found([record("pairs", i, prompt(i), f"It is {i}.") for i in range(60)])
    assert ("exchanged" in seen) is said
    if said:
        assert "an answer stands last in the prompt" in seen["exchanged"].title


@pytest.mark.parametrize(
    ("margins", "said"),
    [([0.0] * 60, True), ([1.0] * 60, False), ([-1.0] * 20 + [1.0] * 40, True), ([-1.0] * 6 + [1.0] * 54, False),
     ([None] * 60, False), ([0.0] * 10 + [None] * 50, False)],
)  # fmt: skip
def test_scores_that_do_not_say_what_the_label_says(margins: list[float | None], said: bool) -> None:
    """From a fifth of those that have scores on, of 20 or more."""
    seen = found(
        PreferencePair(prompt=f"What is {i}?", chosen=f"It is {i}.", rejected=f"No, {i}.", margin=m, source=f"d:{i}")
        for i, m in enumerate(margins)
    )
    assert ("not_higher" in seen) is said
    if said:
        assert seen["not_higher"].lines[0] == "d:0"


@pytest.mark.parametrize(
    ("around", "named"), [("{}\n\n", "(space after it)"), (" {}", "(space before it)"), ("{}", None)]
)
def test_spaces_around_one_side_give_the_labels_away(around: str, named: str | None) -> None:
    """Nobody sees them on a page."""
    seen = found(
        PreferencePair(prompt=f"What is {i}?", chosen=around.format(f"It is {i}."), rejected=f"It is {i + 1}.")
        for i in range(60)
    )
    assert ("shortcut_word" in seen) is (named is not None)
    if named is not None:
        assert seen["shortcut_word"].title.startswith(f"One sign gives the labels away: “{named}”")
